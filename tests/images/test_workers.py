import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from drgrade.errors import UserError
from drgrade.images.workers import in_order

KILLED = """
import psutil, time
from drgrade.images.workers import in_order
if __name__ == "__main__":
    results = in_order(abs, range(99), 2)
    next(results)
    children = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children()}
    print(*(pid for pid, command in children.items() if "resource_tracker" not in command), flush=True)
    time.sleep(99)
"""


@pytest.mark.usefixtures("forked_pools")
@pytest.mark.parametrize("workers", [0, 1, 2, 50])
def test_results_come_in_order(workers):
    # early items take longest
    numbers = [20_000, 1, 500, 0, 3, *range(20)]
    assert list(in_order(math.factorial, numbers, workers)) == [math.factorial(n) for n in numbers]
    assert list(in_order(math.factorial, [], workers)) == []


@pytest.mark.usefixtures("forked_pools")
@pytest.mark.parametrize(("workers", "here"), [(1, True), (2, False)])
def test_one_worker_works_here(workers, here):
    processes = {os.path.realpath(link) for link in in_order(os.path.realpath, ["/proc/self"] * 3, workers)}
    assert (f"/proc/{os.getpid()}" in processes) == here


def test_results_come_while_others_wait():
    results = in_order(math.factorial, range(1000), 1)
    assert [next(results) for _ in range(4)] == [1, 1, 2, 6]


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="a worker died"):
        list(in_order(signal.raise_signal, [0, 0, signal.SIGKILL, 0, 0], 2))


def test_workers_end_with_a_killed_process():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as run:
        workers = list(map(int, run.stdout.readline().split()))
        assert len(workers) == 2
        run.kill()
    until = time.monotonic() + 60
    while any(map(psutil.pid_exists, workers)):
        assert time.monotonic() < until
        time.sleep(0.05)

"""Jobs on one machine find cards of their own; real processes, cards that exist by name alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drgrade import devices

JOB = """
import logging, sys, time
from pathlib import Path
from drgrade import devices
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
devices.LOCKS, devices.PAUSE = Path(sys.argv[1]), 0.05
devices.take_gpu()
print("took " + (devices.os.environ.get(devices.VISIBLE) or "no card"), flush=True)
sys.stdin.read()
"""


class Job:
    """A process that takes a card and holds it until it is told to end."""

    def __init__(self, locks: Path, cards: str | None, **more: str) -> None:
        variables = {key: value for key, value in os.environ.items() if key not in devices.TOGETHER}
        variables |= more | ({} if cards is None else {devices.VISIBLE: cards})
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(locks)], env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def took(self) -> str:
        while not (line := self.line()).startswith("took "):
            assert line, "the job died"
        return line.removeprefix("took ")

    def end(self) -> None:
        self.process.communicate("")


@pytest.fixture
def start(tmp_path: Path):
    jobs = []

    def begin(cards: str | None, **more: str) -> Job:
        jobs.append(Job(tmp_path / "locks", cards, **more))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.poll() is None:
            job.end()


def test_each_job_has_a_card_of_its_own_and_one_too_many_waits(start) -> None:
    jobs = [start("0,1,2,3") for _ in range(4)]
    assert sorted(job.took() for job in jobs) == ["0", "1", "2", "3"]
    fifth = start("0,1,2,3")
    assert fifth.line() == "all 4 GPUs are in use by other jobs of drgrade; waiting for one"
    jobs[2].process.send_signal(signal.SIGKILL)  # a card is free however its job ends
    jobs[2].process.wait()
    assert fifth.took() in {"0", "1", "2", "3"}


def test_cards_that_a_scheduler_gave_are_the_choice(start) -> None:
    first, second = start("4,6"), start("4,6")
    assert {first.took(), second.took()} == {"4", "6"}
    assert start("5").took() == "5"  # one alone is taken as it is, by as many jobs as come
    assert start("5").took() == "5"
    assert start("").took() == "no card"  # the CPU


@pytest.mark.parametrize(
    "together",
    [
        {"DRGRADE_DEVICES": "all"}, {"DRGRADE_DEVICES": "2"}, {"TORCHELASTIC_RUN_ID": "a"},
        {"LOCAL_RANK": "1"}, {"SLURM_STEP_NUM_TASKS": "2"},
    ],
)  # fmt: skip
def test_processes_of_one_training_keep_all_cards(start, together) -> None:
    assert start("0,1", **together).took() == "0,1"
    assert start("0,1", **together).took() == "0,1"


def test_without_a_gpu_nothing_is_set(start) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there are GPUs here")
    assert start(None).took() == "no card"


def test_a_card_is_taken_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LOCKS", tmp_path)
    monkeypatch.setattr(devices, "_held", [])
    for name in devices.TOGETHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    devices.take_gpu()
    assert os.environ[devices.VISIBLE] == "0"
    devices.take_gpu()
    assert os.environ[devices.VISIBLE] == "0"
    os.close(devices._held[0])

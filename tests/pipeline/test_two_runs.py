"""Two runs in one folder: the second is refused before it touches anything, whoever starts it."""

import os
import re
import signal
import socket
import time

import psutil
import pytest
from benchmarks.faults import SNAKEMAKE, digests, jobs, kill, launch, main_process, wait_for

TARGET = ("--", "results/demo/calibrate/calibration.json")


@pytest.fixture
def held(finished, tmp_path):
    """A run whose one job stands still; killed at the end."""
    finished.file("calibrate/calibration.json").unlink()
    run = launch(finished, *SNAKEMAKE, "2", *TARGET, output=tmp_path / "run.log")
    assert wait_for(lambda: bool(jobs(finished)), run)
    (job,) = jobs(finished)
    os.kill(job, signal.SIGSTOP)
    yield run, job
    kill(job)
    run.kill()


def refusal(output: str) -> str:
    """The one line that says why a run was refused."""
    (line,) = [line for line in output.splitlines() if line.startswith("drgrade: error:")]
    assert "Traceback" not in output
    return line


def test_a_second_run_is_refused_and_the_first_ends_well(snakemade, finished, held):
    run, job = held
    main = main_process(finished)
    for command in ((*SNAKEMAKE, "2"), ("dvc", "repro", "index@demo")):
        line = refusal(finished.run(*command, ok=False))
        assert f"another run is at work in this folder, process {main} on {socket.gethostname()}" in line
        assert f"`kill {main}`" in line
    assert finished.planned("--until", "crop") == set()  # looking is allowed
    os.kill(job, signal.SIGCONT)
    assert run.wait(300) == 0
    assert digests(finished) == digests(snakemade)


def test_jobs_of_a_killed_run_are_named_and_after_their_end_the_same_command_works(snakemade, finished, held):
    run, job = held
    kill(main_process(finished))
    run.wait(60)
    line = refusal(finished.snakemake(*TARGET, ok=False))
    assert f"calibrate (process {job} on {socket.gethostname()})" in line
    (pids,) = re.findall(r"`kill ([\d ]+)`", line)
    assert pids == str(job)
    kill(job)
    while psutil.pid_exists(job):
        time.sleep(0.05)
    finished.snakemake(*TARGET)
    assert digests(finished) == digests(snakemade)

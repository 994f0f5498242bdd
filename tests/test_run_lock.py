"""Locks are the kernel's: what a killed process held is free, and what lives is named."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drgrade import run_lock
from drgrade.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory of its own; its lock is given up at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_lock.RUN, "")
    monkeypatch.delenv(run_lock.RUN)
    monkeypatch.setattr(run_lock, "_held", [])
    yield tmp_path
    give_up()


def give_up() -> None:
    """What the end of the run's process does."""
    while run_lock._held:
        os.close(run_lock._held.pop())


def test_a_second_run_is_refused_and_told_who_runs():
    run_lock.lock_run()
    with pytest.raises(UserError, match=rf"process {os.getpid()} on .*`kill {os.getpid()}`"):
        run_lock.lock_run()
    give_up()
    run_lock.lock_run()


def test_a_killed_run_leaves_no_lock_not_even_that_of_snakemake(folder):
    code = "import time; from drgrade import run_lock; run_lock.lock_run(); print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "\n"
        left = folder / ".snakemake/locks/0.input.lock"
        left.parent.mkdir()
        left.touch()
        with pytest.raises(UserError, match=f"process {run.pid}"):
            run_lock.lock_run()
        assert left.exists()
        run.send_signal(signal.SIGKILL)
    run_lock.lock_run()
    assert not left.exists()


def test_jobs_of_a_killed_run_are_named_and_not_worked_beside(folder):
    run_lock.lock_run()
    with run_lock.job_lock("pretrain"):
        give_up()
        with pytest.raises(UserError, match=rf"pretrain \(process {os.getpid()} on .*`kill {os.getpid()}`"):
            run_lock.lock_run()
    assert list((folder / run_lock.JOB_LOCKS).iterdir()) == []
    run_lock.lock_run()


def test_the_file_of_a_killed_job_holds_nobody_up(folder):
    left = folder / run_lock.JOB_LOCKS / "somewhere-1"
    left.parent.mkdir(parents=True)
    left.write_text("somewhere 1 2026-01-01T00:00:00 grade")
    run_lock.lock_run()
    assert not left.exists()


def test_a_job_that_starts_after_its_run_was_killed_leaves_the_work_to_the_next(monkeypatch):
    run_lock.lock_run()
    first = os.environ[run_lock.RUN]
    give_up()
    run_lock.lock_run()
    monkeypatch.setenv(run_lock.RUN, re.sub(r" \d+ ", " 1 ", first))
    with pytest.raises(UserError, match="its run was killed"), run_lock.job_lock("grade"):
        pytest.fail("the job must not begin")
    assert run_lock._at_work() == []


def test_a_verb_by_hand_takes_no_lock(folder):
    with run_lock.job_lock("grade"):
        assert list(folder.iterdir()) == []


def test_without_locks_the_run_goes_on_under_that_of_snakemake(folder, monkeypatch, caplog):
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    Path(".snakemake/locks").mkdir(parents=True)
    run_lock.lock_run()
    assert "No locks available" in caplog.text
    assert run_lock.RUN not in os.environ
    assert (folder / ".snakemake/locks").exists()


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [
        (["snakemake", "--cores", "2"], False),
        (["snakemake", "--touch", "--forceall"], False),
        (["snakemake", "--rulegraph"], True),
        (["snakemake", "--report=a.html"], True),
        (["snakemake", "--lint", "text"], True),
        (["snakemake", "--report-stylesheet", "a.css"], False),
    ],
)
def test_looking_needs_no_lock(arguments, looks):
    assert run_lock.only_looks(arguments) == looks

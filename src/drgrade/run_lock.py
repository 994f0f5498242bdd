"""One run of the workflow at a time in a folder, and none beside the jobs of a run that was killed.

Both locks are the kernel's (``flock``), which end with the process that holds them, however it ends.
Snakemake's own lock is a file: it outlives a killed process, and the next run would ask for ``--unlock``.
"""

import errno
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from drgrade.errors import UserError

log = logging.getLogger(__name__)

RUN = "DRGRADE_RUN"
"""Environment variable: the run that a job belongs to; set where the folder could be locked."""
FOLDER = Path(".snakemake")
RUN_LOCK = FOLDER / "drgrade.run"
JOB_LOCKS = FOLDER / "drgrade.jobs"
"""Folder with a file for each job at work, locked by it."""
SNAKEMAKE_LOCKS = FOLDER / "locks"
HELD = (errno.EAGAIN, errno.EACCES)
"""What the kernel answers where another process holds the lock."""
LOOKS = {
    "--archive", "--d3dag", "--dag", "--detailed-summary", "-D", "--filegraph", "--lint", "--list-changes",
    "--list-rules", "-l", "--list-target-rules", "--lt", "--list-untracked", "--report", "--rulegraph",
    "--summary", "-S", "--unlock",
}  # fmt: skip
"""Options with which Snakemake runs no job. Dry runs are told by its settings, as -n may stand in -np."""

_held: list[int] = []
"""Open lock files; closed by the end of the process."""


class Holder(NamedTuple):
    """The process that holds a lock, as its file says: host, process id, start time, and what it does."""

    host: str
    pid: int
    started: str
    what: str

    @classmethod
    def here(cls, what: str) -> Self:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%dT%H:%M:%S"), what)

    @classmethod
    def read(cls, file: int) -> Self | None:
        """Read an open lock file; None while its holder has not written it yet."""
        host, _, rest = os.pread(file, 4096, 0).decode(errors="replace").partition(" ")
        pid, _, rest = rest.partition(" ")
        started, _, what = rest.partition(" ")
        return cls(host, int(pid), started, what) if pid.isdecimal() and what else None

    def write(self, file: int) -> None:
        """Write an open lock file."""
        os.ftruncate(file, 0)
        os.pwrite(file, str(self).encode(), 0)

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.started} {self.what}"


def only_looks(arguments: Sequence[str]) -> bool:
    """Whether a call of Snakemake with these arguments runs no job, dry runs left aside."""
    return any(argument.split("=")[0] in LOOKS for argument in arguments)


def lock_run() -> None:
    """Take the working directory for a run of the workflow, until this process ends.

    Sets :data:`RUN` for the jobs, and removes what a killed run left of Snakemake's own lock. Where the file
    system knows no locks this is logged, and Snakemake's own lock stands alone.

    Raises:
        UserError: another run holds the directory, or jobs of a killed run are still at work; the message
            names their processes.
    """
    FOLDER.mkdir(exist_ok=True)
    file = os.open(RUN_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise UserError(_refusal(Holder.read(file))) from None
        log.warning("%s: %s; this folder is not locked against killed jobs", RUN_LOCK, error.strerror)
        os.close(file)
        return
    own = Holder.here("snakemake")
    own.write(file)  # before looking for jobs: one that starts late finds itself in another's run, and stops
    if jobs := _at_work():
        os.close(file)
        raise UserError(_orphans(jobs))
    shutil.rmtree(SNAKEMAKE_LOCKS, ignore_errors=True)
    os.environ[RUN] = str(own)
    _held.append(file)


@contextmanager
def job_lock(what: str) -> Iterator[None]:
    """Context manager: a job of the run :data:`RUN` is at work; does nothing where that is not set.

    Args:
        what: name of the job, such as the verb, for the message of :func:`lock_run`.

    Raises:
        UserError: the run was killed before the job started, and another has begun.
    """
    run = os.environ.get(RUN)
    if run is None:
        yield
        return
    JOB_LOCKS.mkdir(parents=True, exist_ok=True)
    own = Holder.here(what)
    path = JOB_LOCKS / f"{own.host}-{own.pid}"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a machine of the cluster on which this disk has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        own.write(file)
        if RUN_LOCK.read_text() != run:
            raise UserError(
                f"{what}: its run was killed before it began, and another has begun; see the logs of that one"
            )
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _at_work() -> list[Holder]:
    """Jobs that hold their lock; the files of others are removed."""
    found = []
    for path in sorted(JOB_LOCKS.glob("*")):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # it has just ended
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            host, _, pid = path.name.rpartition("-")
            found.append(Holder.read(file) or Holder(host, int(pid), "", "a job"))
        finally:
            os.close(file)
    return found


def _refusal(holder: Holder | None) -> str:
    if holder is None:
        return f"{RUN_LOCK}: another run has just begun in this folder; wait until it ends"
    kill = f"kill {holder.pid}"
    return (
        f"{RUN_LOCK}: another run is at work in this folder, process {holder.pid} on {holder.host} since "
        f"{holder.started} ({holder.what}); wait until it ends, or stop it with `{kill}`"
    )


def _orphans(jobs: list[Holder]) -> str:
    named = ", ".join(f"{job.what} (process {job.pid} on {job.host})" for job in jobs)
    pids = " ".join(str(job.pid) for job in jobs)
    return (
        f"{JOB_LOCKS}: a run was killed here, and jobs of it are still at work: {named}; "
        f"wait until they end, or end them with `kill {pids}`, then run the same command again"
    )

"""Results dated in the future: the machine's clock was ahead when they were made, and has been set right."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

STAMP = ".snakemake_timestamp"
"""File in an output folder whose time Snakemake takes for that of the folder."""
STEP = 1000
"""Nanoseconds between two files of different age; Snakemake compares times as floating-point seconds."""


def bring_to_present(paths: Iterable[Path]) -> int:
    """Set modification times that lie in the future to the present; older files stay older.

    A job with an input of the future would fail once its work is done: Snakemake deletes an output that is
    older than an input.

    Args:
        paths: files and output folders, in any order; those of other users keep their time.

    Returns:
        Number of files and folders that were dated in the future.
    """
    now = time.time_ns()
    stamped = (path / STAMP if (path / STAMP).exists() else path for path in paths)
    times = {path: path.stat().st_mtime_ns for path in stamped if path.exists()}
    ahead = {path: moment for path, moment in times.items() if moment > now}
    newest_first = sorted(set(ahead.values()), reverse=True)
    present = {moment: now - STEP * age for age, moment in enumerate(newest_first)}
    for path, moment in ahead.items():
        with suppress(OSError):  # another user's, or on a read-only disk
            os.utime(path, ns=(present[moment],) * 2)
    return len(ahead)

"""Partial results of a stage: a killed run resumes, and several jobs can share the work."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from drgrade.errors import UserError

Item = TypeVar("Item")
SINGLE_JOB = (0, 1)
"""The shard of a job that shares its work with no other."""


def parts_folder(out: Path, made_of: Iterable[str]) -> Path:
    """Create the folder of an output's parts; delete parts that were made of something else.

    Args:
        out: the output that the parts are joined to; the folder is hidden, beside it.
        made_of: what the parts depend on, such as params and digests of inputs.

    Returns:
        A folder whose name is a digest of ``made_of``. Delete its parent when the output is written.
    """
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    folder = out.with_name(f".{out.name}.parts") / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def share(items: Sequence[Item], shard: tuple[int, int]) -> Sequence[Item]:
    """Return the items of one job: every n-th, so that a slow stretch is divided too.

    Args:
        items: the whole work, in the same order for every job.
        shard: number of the job (from 0) and number of jobs.

    Raises:
        UserError: there is no such shard.
    """
    number, of = shard
    if not 0 <= number < of:
        raise UserError(f"shard {number} of {of}: shards count from 0; give one from 0 to {max(of - 1, 0)}")
    return items[number::of]

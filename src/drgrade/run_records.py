"""Snakemake's records of finished jobs: which outputs have one, and which were made from files that are gone.

When a job starts, Snakemake deletes its old outputs; when it fails, Snakemake records its new params all the
same. Results made from the old outputs are still there and are taken for current: after an edit and a failed
training, a second run would find nothing to do. So such results are marked as incomplete, which makes
Snakemake run their jobs again, and with them the jobs of what is missing.
"""

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

METADATA = Path(".snakemake/metadata")
INCOMPLETE = Path(".snakemake/incomplete")
MARK = json.dumps({"external_jobid": None, "drgrade": "an input is missing"})
"""Content of our own marks; Snakemake reads the first key only."""
LONGEST_NAME = 254


def existing(patterns: Iterable[str]) -> list[str]:
    """Paths that match one of some patterns, sorted."""
    return sorted({path for pattern in patterns for path in glob(pattern)})


def record_file(path: str, folder: Path) -> Path:
    """Where Snakemake keeps what it knows of a path: its name in base64, cut into pieces."""
    name = urlsafe_b64encode(path.encode()).decode()
    pieces = [name[start : start + LONGEST_NAME] for start in range(0, len(name), LONGEST_NAME)]
    return folder.joinpath(*("@" + piece for piece in pieces[:-1]), pieces[-1])


def is_recorded(path: str) -> bool:
    """Whether Snakemake knows a path, as finished or as incomplete."""
    return any(record_file(path, folder).exists() for folder in (METADATA, INCOMPLETE))


def mark_stale(outputs: Iterable[str], temporary: Iterable[str]) -> list[str]:
    """Mark outputs as incomplete if a file they were made from is missing; remove marks of others.

    Args:
        outputs: existing outputs.
        temporary: patterns of files that Snakemake deletes after use.

    Returns:
        The marked outputs.
    """
    passing = list(temporary)
    marked = []
    for path in outputs:
        mark = record_file(path, INCOMPLETE)
        missing = [name for name in _inputs(path) if not os.path.exists(name)]
        if any(not any(fnmatch(name, pattern) for pattern in passing) for name in missing):
            marked.append(path)
            if not mark.exists():
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.write_text(MARK)
        elif mark.is_file() and mark.read_text() == MARK:
            mark.unlink()
    return marked


def _inputs(path: str) -> list[str]:
    """The inputs of the job that made an output; none without a record, or with one cut short by a kill."""
    try:
        return json.loads(record_file(path, METADATA).read_text()).get("input") or []
    except (OSError, ValueError):
        return []

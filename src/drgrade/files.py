"""Files that appear atomically, and their digests."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgrade.rank import rank

PARTIAL = ".partial"
"""Ending of a file that is still being written; no reader of a folder looks at these."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _writer() + PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well.

    It keeps the suffix, which writers of images go by.

    >>> with atomic_write(Path("table.csv")) as partial:
    ...     partial.write_text("a,b")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_writer()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _writer() -> str:
    """Tells processes that train together, and write the same file, apart."""
    return f".{rank()}" if rank() else ""


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON with sorted keys."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Atomic writing of files, and their digests."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drgrade.errors import UserError
from drgrade.faults import naming
from drgrade.rank import rank

PARTIAL = ".partial"
"""Suffix of a file that is still being written; code that lists a folder ignores these."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically; creates its parent folders."""
    with _renamed(path.with_name(path.name + _writer() + PARTIAL), path) as partial:
        partial.write_bytes(content)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager with a temporary path beside ``path``, renamed to it if the block ends without error.

    It keeps the suffix, from which image writers infer the format.

    >>> with atomic_write(Path("table.csv")) as partial:
    ...     partial.write_text("a,b")
    """
    with _renamed(path.with_name(f".{path.name}{_writer()}.partial{path.suffix}"), path) as partial:
        yield partial


@contextmanager
def _renamed(partial: Path, path: Path) -> Iterator[Path]:
    """Context manager: ``partial``, renamed to ``path``; removed after an error, which names ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # on a read-only disk even of a file that was never made
            partial.unlink()


def check_writable(out: Path, kind: str) -> None:
    """Create the parent folders of an output, and check before hours of work that it can be written there.

    Args:
        out: file or folder to be written later.
        kind: ``file`` or ``folder``.

    Raises:
        UserError: it cannot; the message names the option ``--out``.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); name another {kind} with --out"
        ) from None


def _writer() -> str:
    """Part of a temporary name that differs between processes of a distributed training."""
    return f".{rank()}" if rank() else ""


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON with sorted keys."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

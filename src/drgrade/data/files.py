"""Write files whole, and hash them."""

import hashlib
import os
from pathlib import Path

PARTIAL = ".partial"
"""Ending of a file that is still being written; no reader looks at these."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

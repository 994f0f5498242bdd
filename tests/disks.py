"""Small disks that can be filled or made read-only, mounted in memory; only root can mount."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """Context manager: an empty disk of ``size`` (such as ``1m``) at ``folder``; a skip without root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False)
    if result.returncode:
        message = f"cannot mount a small disk: {result.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield folder
    finally:  # lazily: mapped files of the tested code may still be open
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """Fill the disk of ``folder`` but for ``left`` bytes; return the file to delete to make room again."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - left)
    return ballast


def make_read_only(folder: Path) -> None:
    """Make a disk of :func:`disk` read-only; permissions alone do not stop root."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

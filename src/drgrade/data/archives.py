"""Unpack zip and tar archives of datasets, also split ones, without writing outside the target folder."""

import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drgrade.errors import UserError
from drgrade.faults import naming, of_machine
from drgrade.files import PARTIAL
from drgrade.messages import quoted, reason
from drgrade.pins import check_pin

BLOCK = 1 << 20
"""Bytes read at a time."""
MOST_TIMES = 100
"""Maximum ratio of unpacked to packed bytes; photographs hardly shrink, masks and tables do, to a 20th."""
DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, IndexError, struct.error,
    zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip
"""What Python's modules raise for damaged archives."""
SMALL = 1 << 30
"""Bytes that an archive may be unpacked to whatever its ratio."""


class _Joined(io.RawIOBase):
    """Read-only file object over the concatenation of several files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._starts = [0]
        for path in paths:
            self._starts.append(self._starts[-1] + path.stat().st_size)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        for file, start, end in zip(self._files, self._starts, self._starts[1:], strict=False):
            if start <= self._at < end:
                file.seek(self._at - start)
                count = file.readinto(buffer)  # may be short at the end of a file; the caller reads on
                self._at += count
                return count
        return 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


BOMB = f"more than {MOST_TIMES} times larger unpacked than packed; do not trust this archive"


def _leaves(name: str) -> bool:
    parts = Path(name.replace("\\", "/")).parts
    return Path(name).is_absolute() or ".." in parts or name.startswith("\\")


class _Inside:
    """Filter for the members of one tar: Python's ``data_filter``, and more.

    Absolute names are refused instead of made relative, and the sizes are added up.
    """

    def __init__(self, name: Path, most: int) -> None:
        self._name, self._left = name, most

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        if _leaves(member.name):
            raise tarfile.AbsolutePathError(member)
        self._left -= member.size
        if self._left < 0:
            raise UserError(f"{self._name}: {BOMB}")
        return tarfile.data_filter(member, folder)


def _extract(archive: BinaryIO, name: Path, folder: Path) -> None:
    most = max(SMALL, MOST_TIMES * archive.seek(0, os.SEEK_END))
    if not zipfile.is_zipfile(archive):
        archive.seek(0)
        with tarfile.open(fileobj=archive) as packed_tar:
            packed_tar.extractall(folder, filter=_Inside(name, most))
        return
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if _leaves(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                what = f"member {quoted(member.filename)} leaves the folder or is a link"
                raise UserError(f"{name}: {what}; do not trust this archive")
        if sum(member.file_size for member in packed.infolist()) > most:
            raise UserError(f"{name}: {BOMB}")
        packed.extractall(folder)


def unpack(archive: Path | Sequence[Path], folder: Path) -> None:
    """Unpack a zip or tar archive into a new ``folder``, atomically.

    Args:
        archive: a file, or the parts it was split into, in order.
        folder: must not exist, or be empty.

    Raises:
        UserError: ``folder`` is not empty, the archive is damaged or not the one that is pinned
            (:func:`drgrade.pins.check_pin`), a member would be written outside the folder, or all of them
            would be larger than SMALL bytes and MOST_TIMES the archive.
    """
    paths = [archive] if isinstance(archive, Path) else list(archive)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; move it away before unpacking {paths[0].name} there")
    for path in paths:
        check_pin(path)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with naming(folder), io.BufferedReader(_Joined(paths), BLOCK) as joined:
            _extract(joined, paths[0], partial)
    except tarfile.FilterError as error:
        raise UserError(f"{paths[0]}: {reason(error)}; do not trust this archive") from None
    except DAMAGED as error:
        if isinstance(error, OSError) and of_machine(error):
            raise
        why = "no whole zip or tar" if isinstance(error, tarfile.ReadError) else reason(error)
        more = ", with all its parts" if len(paths) > 1 else ""
        raise UserError(f"{paths[0]}: cannot be unpacked ({why}); fetch it again{more}") from None
    else:
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Unpack zip and tar archives of datasets, also split ones, without writing outside the target folder."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drgrade.errors import UserError
from drgrade.files import PARTIAL
from drgrade.pins import check_pin

BLOCK = 1 << 20
"""Bytes read at a time."""


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


def _leaves(name: str) -> bool:
    parts = Path(name.replace("\\", "/")).parts
    return Path(name).is_absolute() or ".." in parts or name.startswith("\\")


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Python's ``data_filter`` for tar members, but refuse absolute names instead of making them relative."""
    if _leaves(member.name):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def _extract(archive: BinaryIO, name: Path, folder: Path) -> None:
    if not zipfile.is_zipfile(archive):
        archive.seek(0)
        with tarfile.open(fileobj=archive) as packed_tar:
            packed_tar.extractall(folder, filter=_inside)
        return
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if _leaves(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                what = f"member {member.filename!r} leaves the folder or is a link"
                raise UserError(f"{name}: {what}; do not trust this archive")
        packed.extractall(folder)


def unpack(archive: Path | Sequence[Path], folder: Path) -> None:
    """Unpack a zip or tar archive into a new ``folder``, atomically.

    Args:
        archive: a file, or the parts it was split into, in order.
        folder: must not exist, or be empty.

    Raises:
        UserError: ``folder`` is not empty, the archive is damaged or not the one that is pinned
            (:func:`drgrade.pins.check_pin`), or a member would be written outside the folder.
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
        with io.BufferedReader(_Joined(paths), BLOCK) as joined:
            _extract(joined, paths[0], partial)
    except tarfile.FilterError as error:
        raise UserError(f"{paths[0]}: {error}; do not trust this archive") from None
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        why = "no whole zip or tar" if isinstance(error, tarfile.ReadError) else " ".join(str(error).split())
        more = ", with all its parts" if len(paths) > 1 else ""
        raise UserError(f"{paths[0]}: cannot be unpacked ({why}); fetch it again{more}") from None
    else:
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Fetch files over the network, so that a bad connection costs time and never correctness."""

import http.client
import io
import logging
import os
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drgrade.errors import UserError
from drgrade.files import PARTIAL, sha256

log = logging.getLogger(__name__)

BLOCK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
GONE = (408, 425, 429)
"""Client errors that may pass; other 4xx answers are final."""


def _show(name: str, done: int, total: int | None) -> None:
    """A progress line, on a terminal only."""
    if sys.stderr.isatty():
        share = f" of {total / 1e6:.1f} MB ({done / total:.0%})" if total else " MB"
        end = "\n" if done == total else ""
        print(f"\r{name}: {done / 1e6:.1f}{share}", end=end, file=sys.stderr, flush=True)


def _stream(url: str, partial: Path) -> None:
    """Append what is missing of ``url`` to ``partial``.

    Raises:
        OSError: the connection broke; what came so far stays in ``partial``.
    """
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # complete already: the process died between the last byte and the renaming
        partial.unlink()
        raise ConnectionError("the file changed on the server") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server does not resume
        elif not response.headers.get("Content-Range", f"bytes {have}-").startswith(f"bytes {have}-"):
            partial.unlink()
            raise ConnectionError("the server resumes elsewhere")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with partial.open("ab" if have else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                _show(partial.name.removesuffix(PARTIAL), have, total)
    if total is not None and have < total:
        raise ConnectionError(f"connection closed after {have} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def fetch(url: str, path: Path, sha256_wanted: str | None, *, attempts: int = 5, pause: float = 1.0) -> None:
    """Fetch ``url`` into ``path``, resuming a broken transfer, and verify it.

    Args:
        url: http, https or file.
        path: where the file goes; not touched again when it has the right hash already.
        sha256_wanted: expected SHA-256, or None where the source publishes none (the hash is then logged).
        attempts: failures in a row, without a byte gained, after which to give up.
        pause: seconds before the second attempt; doubles each time.

    Raises:
        UserError: the server refuses, the connection fails for good, or the content is not what was expected.
    """
    if path.exists() and sha256_wanted in (None, sha256(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    failures = 0
    while True:
        before = _size(partial)
        try:
            _stream(url, partial)
            break
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            failures = 1 if _size(partial) > before else failures + 1
            if failures >= attempts or (code is not None and 400 <= code < 500 and code not in GONE):
                raise UserError(
                    f"{url}: {error}; check the address and the network, then run again"
                ) from None
            wait = pause * 2 ** (failures - 1)
            log.warning("%s: %s; again in %.0f s", url, error, wait)
            time.sleep(wait)
    found = sha256(partial)
    if sha256_wanted not in (None, found):
        partial.unlink()
        raise UserError(
            f"{url}: SHA-256 is {found}, not {sha256_wanted}; the file there is damaged or another version"
        )
    log.info("%s: SHA-256 %s", path, found)
    os.replace(partial, path)


class _Joined(io.RawIOBase):
    """Several files, read one after the other as if they were one."""

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
                count = file.readinto(buffer)  # a short read ends with the file; the caller asks again
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
    """Python's own check of tar members, which would otherwise make absolute names relative."""
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
    """Unpack a zip or tar into a new ``folder``, whole or not at all.

    Args:
        archive: a file, or the files it was cut into, in order.
        folder: must not be there, or be empty.

    Raises:
        UserError: ``folder`` has files already, the archive is damaged, or a member would land outside the
            folder.
    """
    paths = [archive] if isinstance(archive, Path) else list(archive)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; move it away before unpacking {paths[0].name} there")
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

"""Faults of the machine: a full or read-only disk, missing permissions, too many open files.

They travel as :class:`OSError`, which no code takes for a bad photograph, up to the command line. There
:func:`as_user_errors` makes one line of them.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from drgrade.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FILES = (errno.EMFILE, errno.ENFILE)
DENIED = (errno.EACCES, errno.EPERM)
FAULTS = (*FULL, *FILES, *DENIED, errno.EROFS)
PROBE = 2**16
"""Bytes that must fit on a disk that is not full."""
SHARED_MEMORY = Path("/dev/shm")
"""Where processes share memory; full in containers that were given little of it."""
_RUST = re.compile(r"os error (\d+)")  # how libraries in Rust, such as safetensors, report errno
_SHARED = re.compile(r"shared memory\(shm\)|out of shared memory")  # and how torch reports it full


def allocate(file: IO[bytes], size: int) -> None:
    """Make a file ``size`` bytes long, with disk space for all of them.

    Writing to memory that is mapped from a sparse file kills the process if the disk is full. Where the file
    system cannot allocate, as NFS before version 4.2, the C library writes to each of its blocks instead:
    slower, with the same promise. On file systems that copy on write (Btrfs, ZFS) later writes may need more.

    Raises:
        OSError: the disk is full.
    """
    os.posix_fallocate(file.fileno(), 0, size)


def of_machine(error: OSError) -> bool:
    """Whether the next file would fail for the same reason: no disk space, no free file number, no memory."""
    return error.errno in (*FULL, *FILES, errno.ENOMEM)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context manager that has faults name ``path``, which is being written.

    Errors of writing often carry no file name, or that of a temporary file. Some libraries report a full disk
    by another exception, or without its number; that becomes an :class:`OSError` too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _number(error, path.parent)
        if number is None or _names_another(error, path):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Context manager that raises a :class:`UserError` in place of a fault of the machine."""
    try:
        yield
    except OSError as error:
        line = described(error)
        if line is None:
            raise
        raise UserError(line) from None
    except RuntimeError as error:
        if not _SHARED.search(str(error)):
            raise
        raise UserError(
            f"{SHARED_MEMORY}: full ({_free(SHARED_MEMORY)} free), but processes that read images use it; "
            "give the container more (docker run --shm-size=1g)"
        ) from None


def described(error: OSError) -> str | None:
    """Return one line about a fault, with the remedy; None for other errors, which may be our own."""
    name, number = error.filename, error.errno
    path = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else None
    if number in FULL:
        return f"{_full(path, number)}; make room and run it again"
    if number in FILES:
        where = "" if path is None else f"{path}: "
        return f"{where}too many open files; raise the limit (ulimit -n), or use fewer cores"
    if path is None:
        return None
    if number == errno.EROFS:
        return f"{path}: the disk is read-only; mount it for writing, or choose another folder"
    if number in DENIED:
        return f"{path}: permission denied; correct the permissions of it and of its folder"
    return None


def _full(path: Path | None, number: int | None) -> str:
    what = "the disk is full" if number == errno.ENOSPC else "the disk quota is used up"
    if path is not None:
        return f"{path}: {what} ({_free(path)} free)"
    places = [place for place in (Path.cwd(), Path(tempfile.gettempdir()), SHARED_MEMORY) if place.is_dir()]
    return f"{what} (free: {', '.join(f'{place} {_free(place)}' for place in places)})"


def _free(path: Path) -> str:
    """Free space on the disk of a path, which need not exist."""
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{shutil.disk_usage(place).free / 1e6:.1f} MB"


def _number(error: Exception, folder: Path) -> int | None:
    """The errno of a fault while writing to ``folder``; None if the machine is not to blame."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _RUST.search(str(error))):
        number = int(found[1])
    if number is None and _is_full(folder):
        number = errno.ENOSPC
    return number if number in FAULTS else None


def _names_another(error: Exception, path: Path) -> bool:
    """Whether an error names a file elsewhere; a copy names its source, a writer a temporary file beside."""
    if not isinstance(error, OSError) or error.filename2 is not None:
        return False
    name = error.filename
    return isinstance(name, (str, bytes)) and Path(os.fsdecode(name)).parent != path.parent


def _is_full(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file, PROBE)
    except OSError as error:
        return error.errno in FULL
    return False

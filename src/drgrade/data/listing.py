"""List a dataset's raw folder in a small file that Snakemake checks at every start.

The rule ``download`` has the listing as its input: the expected content of the manifest. A photograph that is
added, removed or changed, or a corrected label file, changes the listing; a new time stamp alone does not.
Only files whose size or time differ are read again, so that a large dataset takes a second.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, TypeAlias

from drgrade.errors import UserError
from drgrade.faults import of_machine
from drgrade.files import sha256, write_file

log = logging.getLogger(__name__)

FOLDER = Path(".cache/drgrade/raw")
PHOTOGRAPHS = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm")
"""Extensions of files that are read as photographs, in upper or lower case."""
LISTED = (*PHOTOGRAPHS, ".csv", ".txt")
HEADER = "path\tsize\tsha256"
CHANGED = "changed"
"""Replaces the SHA-256 of a file that differs from the manifest or is not in it."""


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
UNREADABLE = "unreadable"
"""Replaces the SHA-256 of a file that cannot be read."""


class State(NamedTuple):
    """Size of a file in bytes and modification time in nanoseconds; -1 for a broken link or a folder."""

    size: int
    time: int


class Known(NamedTuple):
    """A file with its SHA-256, valid while size and time are unchanged; time None if it was not recorded."""

    size: int
    time: int | None
    sha256: str


def raw_root(dataset: str) -> Path:
    """Folder of raw files: environment variable ``DRGRADE_<DATASET>_ROOT``, else ``data/raw/<dataset>``."""
    return Path(os.environ.get(f"DRGRADE_{dataset.upper()}_ROOT") or Path("data/raw") / dataset)


def scan(root: Path) -> dict[str, State]:
    """Return photographs, masks and label files under ``root`` by relative path (:func:`escaped`), sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        return dict(sorted(_scan(root))) if root.is_dir() else {}
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); mend its permissions"
        ) from None


def _scan(root: Path) -> Iterator[tuple[str, State]]:
    for path, entry in walk(root):
        if entry.name.lower().endswith(LISTED):
            yield escaped(path), state(Path(entry.path))


def state(path: Path) -> State:
    """Return size and modification time of a file."""
    try:
        found = path.stat()
    except OSError:  # a broken or circular link
        return State(-1, -1)
    return State(found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else State(-1, -1)


Entry: TypeAlias = "os.DirEntry[str]"


def walk(folder: Path, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, Entry]]:
    """Yield all files under a folder by relative path, sorted; follows links to folders, skips hidden files.

    A folder with the name of a photograph, such as ``a.jpeg``, counts as a file. A link to one of its parent
    folders is logged and not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry) or entry.name.lower().endswith(PHOTOGRAPHS):
                yield prefix + entry.name, entry
            elif entry.is_symlink() and os.path.realpath(entry.path) in above:
                log.warning("%s: a link to a folder that holds it; not followed", escaped(entry.path))
            else:
                yield from walk(Path(entry.path), f"{prefix}{entry.name}/", above)


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def escaped(name: str) -> str:
    """Return a file name with control characters and bytes that are not UTF-8 replaced by escape codes."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or UNREADABLE."""
    try:
        return sha256(path)
    except OSError as error:
        if of_machine(error):
            raise
        return UNREADABLE


def refresh(dataset: str, manifest: Path, listing: Path) -> None:
    """Update a listing; the file is written only if it changes.

    Without a manifest no file is known; without raw files (a clone that has only results) the manifest is
    assumed to be correct.

    Args:
        dataset: name of the dataset, see :func:`raw_root`.
        manifest: manifest of the stage download.
        listing: the file to update; sizes and times of known files are kept beside it, in ``.state``.
    """
    if not manifest.is_file():
        _write(listing, HEADER + "\n")
        return
    root = raw_root(dataset)
    found = scan(root)
    if not found:
        _write(listing, manifest.read_text(encoding="utf-8"))
        return
    known = read_state(listing.with_suffix(".state"))
    if not known:
        listed = read_manifest(manifest)
        known = {path: Known(size, None, digest) for path, (size, digest) in listed.items()}
    lines, news = [HEADER], {}
    for path, state in found.items():
        old = known.get(path)
        same = _digest(root, path, state, old)
        if same is not None and old is not None and old.time != state.time:
            news[path] = Known(*state, same)
        lines.append(f"{path}\t{state.size}\t{same or CHANGED}")
    _write(listing, "\n".join([*lines, ""]))
    if news:
        write_state(known | news, listing.with_suffix(".state"))


def _digest(root: Path, path: str, state: State, known: Known | None) -> str | None:
    """SHA-256 of an unchanged file, read again only if just its time differs; None for a changed file."""
    if known is None or known.size != state.size:
        return None
    if known.sha256 == UNREADABLE:  # permissions can change without size and time
        return UNREADABLE if digest(root / path) == UNREADABLE else None
    if known.time not in (None, state.time) and digest(root / path) != known.sha256:
        return None
    return known.sha256


def remember(files: dict[str, Known], listing: Path) -> None:
    """Write the listing of a newly written manifest."""
    write_state(files, listing.with_suffix(".state"))
    lines = [f"{path}\t{known.size}\t{known.sha256}" for path, known in sorted(files.items())]
    _write(listing, "\n".join([HEADER, *lines, ""]))


def read_state(file: Path) -> dict[str, Known]:
    """Read known files by path; empty if the file is missing."""
    known = {}
    try:
        for line in file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]:
            path, size, time, digest = line.split("\t")
            known[path] = Known(int(size), int(time) if time else None, digest)
    except (OSError, ValueError):
        return {}
    return known


def write_state(known: dict[str, Known], file: Path) -> None:
    """Write known files for :func:`read_state`."""
    lines = [
        f"{path}\t{size}\t{'' if time is None else time}\t{digest}"
        for path, (size, time, digest) in known.items()
    ]
    _write(file, "\n".join([*lines, ""]))


def _write(file: Path, text: str) -> None:
    content = text.encode(errors="surrogateescape")  # names may be in another encoding
    if not file.is_file() or file.read_bytes() != content:
        write_file(file, content)


def read_manifest(manifest: Path) -> dict[str, tuple[int, str]]:
    """Read size and SHA-256 of each raw file, by path relative to the dataset's root.

    Raises:
        UserError: the file is missing or not a manifest.
    """
    try:
        header, *lines = manifest.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if header != HEADER:
            raise ValueError
        cells = (line.split("\t") for line in lines)
        return {path: (int(size), digest) for path, size, digest in cells}
    except FileNotFoundError:
        raise UserError(f"{manifest}: no such file; run drgrade download first") from None
    except ValueError:
        raise UserError(f"{manifest}: not a manifest; delete it and run drgrade download again") from None

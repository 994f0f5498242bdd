"""List a dataset's raw folder in a file small enough for Snakemake to compare at every start.

The rule ``download`` has a listing as its input: what the manifest should say now. A photograph that is
added, removed or changed, or a corrected label file, changes the listing; a file that was only touched does
not. Sizes and times tell which files have to be read again, so that a large dataset takes a second.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.files import sha256, write_file

FOLDER = Path(".cache/drgrade/raw")
PHOTOGRAPHS = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm")
"""Endings of files that are taken for photographs, in any case."""
LISTED = (*PHOTOGRAPHS, ".csv", ".txt")
HEADER = "path\tsize\tsha256"
CHANGED = "changed"
"""In place of the SHA-256 of a file that the manifest does not know as it is."""


class State(NamedTuple):
    """Size in bytes and time of change of a file, in nanoseconds; -1 for a link to nothing."""

    size: int
    time: int


class Known(NamedTuple):
    """A file whose SHA-256 is known, as long as size and time stay; the time is None where it never was."""

    size: int
    time: int | None
    sha256: str


def raw_root(dataset: str) -> Path:
    """Folder of the raw files: the environment's ``DRGRADE_<DATASET>_ROOT``, else ``data/raw/<dataset>``."""
    return Path(os.environ.get(f"DRGRADE_{dataset.upper()}_ROOT") or Path("data/raw") / dataset)


def scan(root: Path) -> dict[str, State]:
    """Photographs, masks and label files under ``root`` by relative path, sorted.

    Raises:
        UserError: a folder may not be read.
    """
    try:
        return dict(sorted(_scan(root, ""))) if root.is_dir() else {}
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); mend its permissions"
        ) from None


def _scan(folder: Path, prefix: str) -> Iterator[tuple[str, State]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _scan(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(LISTED):
                try:
                    state = entry.stat()
                    yield prefix + entry.name, State(state.st_size, state.st_mtime_ns)
                except OSError:  # a link to nothing
                    yield prefix + entry.name, State(-1, -1)


def refresh(dataset: str, manifest: Path, listing: Path) -> None:
    """Bring a listing up to date; the file is written only if it changes.

    Without a manifest nothing is known, and without raw files (a clone that has results alone) the manifest
    is believed.

    Args:
        dataset: whose :func:`raw_root` is looked at.
        manifest: of the stage download.
        listing: the file; beside it, as ``.state``, what was known when.
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
        digest = _digest(root, path, state, old)
        if digest is not None and old is not None and old.time != state.time:
            news[path] = Known(*state, digest)
        lines.append(f"{path}\t{state.size}\t{digest or CHANGED}")
    _write(listing, "\n".join([*lines, ""]))
    if news:
        write_state(known | news, listing.with_suffix(".state"))


def _digest(root: Path, path: str, state: State, known: Known | None) -> str | None:
    """The SHA-256 of a file that is as it was, read only if its time alone differs; None for any other."""
    if known is None or known.size != state.size:
        return None
    if known.time not in (None, state.time) and sha256(root / path) != known.sha256:
        return None
    return known.sha256


def remember(files: dict[str, Known], listing: Path) -> None:
    """Write the listing that belongs to a manifest just written."""
    write_state(files, listing.with_suffix(".state"))
    lines = [f"{path}\t{known.size}\t{known.sha256}" for path, known in sorted(files.items())]
    _write(listing, "\n".join([HEADER, *lines, ""]))


def read_state(file: Path) -> dict[str, Known]:
    """Known files by path; empty if there is no such file."""
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
    content = text.encode(errors="surrogateescape")  # names may be of another encoding
    if not file.is_file() or file.read_bytes() != content:
        write_file(file, content)


def read_manifest(manifest: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each raw file, by path relative to the dataset's root.

    Raises:
        UserError: no such file, or not a manifest.
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

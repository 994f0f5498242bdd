"""Bring a dataset's raw files into place and write down what is there: the manifest."""

import logging
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drgrade.data.fetch import fetch, unpack
from drgrade.data.labels import PHOTOGRAPHS
from drgrade.data.registry import DATASETS, Card, Dataset, count_report, raw_root
from drgrade.errors import UserError
from drgrade.files import sha256, write_file
from drgrade.params import Download

log = logging.getLogger(__name__)

LISTED = (*PHOTOGRAPHS, ".csv", ".txt")
HEADER = "path\tsize\tsha256"
THREADS = 8


def _raw_files(root: Path) -> list[Path]:
    """Photographs, masks and label files under ``root``, sorted by relative path."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [
            Path(folder, name) for name in names
            if name.lower().endswith(LISTED) and not name.startswith(".")
        ]  # fmt: skip
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def write_manifest(root: Path, manifest: Path) -> int:
    """List path (relative to ``root``), size in bytes and SHA-256 of all raw files; returns their number.

    Raises:
        UserError: there are no raw files, one cannot be read, or has a tab or line break in its name.
    """
    paths = _raw_files(root)
    if not paths:
        raise UserError(f"{root}: holds no photographs; put the dataset's files there")
    names = [path.relative_to(root).as_posix() for path in paths]
    for name in names:
        if any(mark in name for mark in "\t\r\n"):
            raise UserError(f"{root}: file name {name!r} has a tab or a line break; rename it")
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = list(pool.map(sha256, paths))
        lines = [f"{n}\t{p.stat().st_size}\t{h}" for n, p, h in zip(names, paths, hashes, strict=True)]
    except OSError as error:  # such as a link to a file that was moved away
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); bring the file back, or remove its name"
        ) from None
    write_file(manifest, "\n".join([HEADER, *lines, ""]).encode())
    return len(lines)


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


def fetch_files(card: Card, root: Path) -> None:
    """Fetch, verify and unpack what a card lists; nothing is fetched or unpacked twice.

    Raises:
        UserError: a server refuses, a hash is wrong, or an archive is not safe to unpack.
    """
    for file in card.files:
        path = root / file.path
        fetch(file.url, path, file.sha256)
        folder = path.with_suffix("")
        if (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)) and not folder.exists():
            unpack(path, folder)


def check_counts(part: Dataset, root: Path) -> None:
    """Warn of what a copy of a dataset lacks; nothing to say where the card gives no counts.

    Raises:
        UserError: a label file is not the official one.
    """
    if part.card.counts:
        for line in count_report(part.card, part.read(root), root):
            log.warning("not the complete dataset: %s", line)


def download(dataset: str, params: Download, manifest: Path) -> None:
    """Paint, fetch or check the raw files of ``dataset`` under :func:`raw_root`, then write its manifest.

    Raises:
        UserError: the dataset is unknown, its files must be put there by hand and are not, or a label file
            is broken or not the official one.
    """
    part: Dataset = DATASETS.get(dataset)()
    root = raw_root(dataset)
    log.info("%s: %s, licence: %s, source: %s", dataset, part.card.title, part.card.licence, part.card.source)
    fetch_files(part.card, root)
    part.download(root, params)
    check_counts(part, root)
    log.info("%s: %d files listed in %s", root, write_manifest(root, manifest), manifest)

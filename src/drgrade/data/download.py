"""Bring a dataset's raw files into place and list them in a manifest."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drgrade.data.listing import HEADER, UNREADABLE, Known, digest, raw_root, remember, scan
from drgrade.data.registry import DATASETS, Dataset, count_report
from drgrade.errors import UserError
from drgrade.files import write_file
from drgrade.params import Download

log = logging.getLogger(__name__)

THREADS = 8


def write_manifest(root: Path, manifest: Path, listing: Path | None = None) -> int:
    """List path (relative to ``root``), size in bytes and SHA-256 of all raw files; returns their number.

    A file that cannot be read (a broken link, a name that is not UTF-8) is listed as unreadable.

    Args:
        root: folder of the raw files.
        manifest: output file.
        listing: output file with sizes and times, by which :mod:`.listing` later detects changed files.

    Raises:
        UserError: there are no raw files, or a folder cannot be read.
    """
    found = scan(root)  # before hashing, so that files changed meanwhile are detected as newer
    if not found:
        raise UserError(f"{root}: holds no photographs; put the dataset's files there")
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(digest, [root / name for name in found])
        files = {
            name: Known(*state, sha256) for (name, state), sha256 in zip(found.items(), hashes, strict=True)
        }
    unread = [name for name, known in files.items() if known.sha256 == UNREADABLE]
    if unread:
        log.warning("%s: %d of %d files cannot be read, such as %s", root, len(unread), len(files), unread[0])
    if listing is not None:
        remember(files, listing)
    lines = [f"{name}\t{known.size}\t{known.sha256}" for name, known in files.items()]
    write_file(manifest, "\n".join([HEADER, *lines, ""]).encode())
    return len(lines)


def check_counts(part: Dataset, root: Path) -> None:
    """Warn if photographs of a dataset are missing; does nothing if the card has no counts.

    Raises:
        UserError: a label file is not the official one.
    """
    if part.card.counts:
        for line in count_report(part.card, part.read(root), root):
            log.warning("not the complete dataset: %s", line)


def download(dataset: str, params: Download, manifest: Path, listing: Path | None = None) -> None:
    """Generate, fetch or check the raw files of ``dataset`` under :func:`raw_root`, then write its manifest.

    Args:
        dataset: its registered name.
        params: the block ``download``.
        manifest: output file with path, size and SHA-256 of every raw file.
        listing: output file, optional; see :func:`write_manifest`.

    Raises:
        UserError: the dataset is unknown, its files must be provided by the user and are missing, or a label
            file is invalid or not the official one.
    """
    part: Dataset = DATASETS.get(dataset)()
    root = raw_root(dataset)
    log.info("%s: %s, licence: %s, source: %s", dataset, part.card.title, part.card.licence, part.card.source)
    part.download(root, params)
    check_counts(part, root)
    log.info("%s: %d files listed in %s", root, write_manifest(root, manifest, listing), manifest)

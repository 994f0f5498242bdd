"""Bring a dataset's raw files into place and write down what is there: the manifest."""

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

    A file that cannot be read (a link to nothing, a name that is not UTF-8) is listed as such.

    Args:
        root: folder of the raw files.
        manifest: written.
        listing: written too, with what :mod:`.listing` needs to tell later whether the files are the same.

    Raises:
        UserError: there are no raw files, or a folder cannot be read.
    """
    found = scan(root)  # before they are read: what changes meanwhile is then seen to be newer
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
    """Warn if photographs of a dataset are missing; no check where the card gives no counts.

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
        manifest: written: path, size and SHA-256 of every file.
        listing: written, if given; see :func:`write_manifest`.

    Raises:
        UserError: the dataset is unknown, its files must be put there by hand and are not, or a label file
            is broken or not the official one.
    """
    part: Dataset = DATASETS.get(dataset)()
    root = raw_root(dataset)
    log.info("%s: %s, licence: %s, source: %s", dataset, part.card.title, part.card.licence, part.card.source)
    part.download(root, params)
    check_counts(part, root)
    log.info("%s: %d files listed in %s", root, write_manifest(root, manifest, listing), manifest)

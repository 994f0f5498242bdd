"""Files of a Kaggle competition: found in the dataset's folder or downloaded, and unpacked there.

Kaggle splits large archives into ``train.zip.001``, ``train.zip.002``, ...; they are read as one file
without being joined on disk.
"""

import logging
import os
import re
import shutil
from pathlib import Path

from drgrade.data.archives import unpack
from drgrade.data.registry import Card
from drgrade.errors import UserError

log = logging.getLogger(__name__)


def bring(card: Card, root: Path, names: tuple[str, ...]) -> None:
    """Bring the files and folders ``names`` of a competition to ``root``.

    Existing files are not changed; archives in ``root`` are unpacked; only what is still missing is
    downloaded through kagglehub, which resumes and verifies downloads and keeps a copy in its cache. Files of
    the cache are hard-linked if the file system allows it.

    Raises:
        UserError: something is missing and cannot be downloaded (no credentials, rules not accepted, no
            network), or an archive lacks a part, is damaged, or would write outside its folder.
    """
    missing = [name for name in names if not (root / name).exists() and not _place(root, name, root)]
    if not missing:
        return
    folder = _competition(card, root / missing[0], root)
    for name in missing:
        if not _place(folder, name, root):
            raise UserError(f"{root / name}: not found, and Kaggle's {card.kaggle} does not hold it; "
                            f"{_remedy(card, root)}")  # fmt: skip


def _remedy(card: Card, root: Path) -> str:
    return card.instructions.format(root=root, source=card.source)


def _competition(card: Card, wanted: Path, root: Path) -> Path:
    """Download the competition's files with kagglehub and return their folder."""
    import kagglehub

    log.info("%s: not found; fetching %s through kagglehub", wanted, card.kaggle)
    try:
        return Path(kagglehub.competition_download(card.kaggle))
    except Exception as error:  # from requests, the operating system, or kagglehub's own
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if type(error).__name__ == "UnauthenticatedError":
            why = "no Kaggle credentials"
        elif status in (401, 403):
            why = f"Kaggle refuses ({status}): the credentials are wrong or the rules are not accepted"
        raise UserError(
            f"{wanted}: not found, and cannot be fetched ({why}): {_remedy(card, root)}"
        ) from None


def _place(folder: Path, name: str, root: Path) -> bool:
    """Bring ``name`` from ``folder`` to ``root``: a file, a folder, or an archive's content."""
    target = root / name
    if folder != root and (folder / name).is_dir():
        copied = target.with_name(f".{name}.copied")  # an interrupted copy leaves no incomplete folder
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(folder / name, copied, copy_function=_link)
        os.replace(copied, target)
    elif folder != root and (folder / name).is_file():
        root.mkdir(parents=True, exist_ok=True)
        _link(folder / name, target)
    elif (folder / f"{name}.zip").is_file():
        _unpack_flat([folder / f"{name}.zip"], target)
    elif parts := _parts(folder, f"{name}.zip"):
        _unpack_flat(parts, target)
    return target.exists()


def _parts(folder: Path, name: str) -> list[Path]:
    """Paths ``name.001``, ``name.002``, ... up to the first gap; empty if there are no parts."""
    pattern = re.compile(re.escape(name) + r"\.(\d{3})")
    found = {
        int(match[1]): path for path in folder.glob(f"{name}.*") if (match := pattern.fullmatch(path.name))
    }
    lacking = sorted(set(range(1, max(found, default=0) + 1)) - set(found))
    if lacking:
        raise UserError(f"{folder / name}.{lacking[0]:03d}: part of the archive not found; fetch it")
    return [found[number] for number in sorted(found)]


def _unpack_flat(archive: list[Path], target: Path) -> None:
    """Unpack to ``target``; a folder or file of that name inside the archive becomes ``target`` itself."""
    log.info("%s: unpacking", archive[0])
    opened = target.with_name(f".{target.name}.unpacked")
    shutil.rmtree(opened, ignore_errors=True)
    unpack(archive, opened)
    try:
        inner = opened / target.name
        os.replace(inner if inner.exists() else opened, target)
    finally:
        shutil.rmtree(opened, ignore_errors=True)


def _link(source: str | Path, target: str | Path) -> str:
    """Create a hard link, or a copy if the file systems differ."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(target)

"""The verb ``clean``: list results that no params file names any more, and delete them if asked to.

Raw photographs, and what is a current output of DVC, are never touched.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.params import Params, load

RESULTS = Path("results")
NAMED = {"grade": "experiments", "pretrain": "pretrain", "features": "features", "explain": "explanations"}
"""Folders of a dataset whose subfolders are named after the keys of a block of ``params.yaml``."""
FIRST_STAGES = ("download", "index")
"""A folder in ``results`` is that of a dataset if one of these is in it."""


class Stale(NamedTuple):
    """A file or folder that no params file names: its path, and the kind of key that is missing."""

    path: Path
    kind: str


def clean(files: Sequence[Path], *, delete: bool) -> None:
    """Print what no params file names, with sizes; delete it if ``delete`` is true.

    Args:
        files: the params files whose results are kept.
        delete: whether to delete.

    Raises:
        UserError: a params file is not valid, or DVC cannot read its pipeline.
    """
    found = list(stale([load(file) for file in files]))
    tracked = dvc_outputs() if found else []
    total = 0
    for one in found:
        if any(out.is_relative_to(one.path) or one.path.is_relative_to(out) for out in tracked):
            print(f"{one.path}: kept, as DVC tracks it")
            continue
        size = size_of(one.path)
        total += size
        print(f"{one.path}: {one.kind}, {megabytes(size)}")
        if delete:
            remove(one.path)
    if not found:
        print(f"{RESULTS}: all of it is named in {', '.join(map(str, files))}")
    elif delete:
        print(f"deleted {megabytes(total)}; DVC keeps copies of what it recorded (docs/sweeps.md)")
    else:
        print(f"{megabytes(total)}; nothing is deleted without --yes")


def stale(named: Sequence[Params], results: Path = RESULTS) -> Iterator[Stale]:
    """Yield what lies in ``results`` for experiments, encoders, and so on that none of the params name.

    A name counts for all datasets, whatever their roles. Folders that are not of a dataset are left alone.
    """
    datasets = {name for params in named for name in params.datasets}
    for folder in _folders(results):
        if folder.name in datasets:
            for stage, block in NAMED.items():
                keys = {key for params in named for key in getattr(params, block)}
                kind = f"not in {block}"
                yield from (Stale(path, kind) for path in _folders(folder / stage) if path.name not in keys)
        elif any((folder / stage).is_dir() for stage in FIRST_STAGES):
            yield Stale(folder, "not in datasets")
    for path in sorted((results / "splits").glob("*.*")):
        if path.stem not in datasets and path.suffix in (".csv", ".json"):
            yield Stale(path, "not in datasets")


def _folders(folder: Path) -> list[Path]:
    """Subfolders, sorted; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def dvc_outputs() -> list[Path]:
    """Outputs of all stages of DVC as they are now, relative to the working folder; none without DVC.

    Raises:
        UserError: DVC cannot read its pipeline.
    """
    if not Path(".dvc").is_dir():
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            outputs = [Path(out.fs_path) for out in repo.index.outs if out.protocol == "local"]
    except DvcException as error:
        raise UserError(f"dvc.yaml: {error}; correct it or params.yaml first") from None
    here = Path.cwd().resolve()
    return [path.relative_to(here) for path in outputs if path.is_relative_to(here)]


def size_of(path: Path) -> int:
    """Size of a file, or of all files in a folder, in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def remove(path: Path) -> None:
    """Delete a file or folder; of a link only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def megabytes(size: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

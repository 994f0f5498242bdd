"""What a dataset is, and where its raw files lie.

A dataset is a class in its own module of this package, registered under the module's name:

>>> @DATASETS.register("mine")
... class Mine:
...     card = Card(name="mine", title="My photographs", ...)
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Download
from drgrade.plugins import Registry

DATASETS = Registry("drgrade.data")

READ_COLUMNS = ("image_id", "path", "patient_id", "eye", "grade", "subset", "official_split")
"""Columns of the table that ``Dataset.read`` returns."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of an open dataset: where it is, where it goes, what it must hash to."""

    url: str
    path: str
    """Relative to the dataset's root; an archive (zip, tar) is unpacked into a folder of its name."""
    sha256: str | None
    """None where the source publishes none; the hash is then logged."""


@dataclass(frozen=True)
class Card:
    """What a user must know about a dataset before using it."""

    name: str
    title: str
    version: str
    licence: str
    source: str
    access: Literal["painted", "open", "form"]
    citation: str
    instructions: str
    """Which files to put where; ``{root}`` stands for the dataset's folder, ``{source}`` for the source."""
    files: tuple[RemoteFile, ...] = ()
    """What is fetched for the user before the dataset's own ``download``."""


class Dataset(Protocol):
    """Reader of one dataset's official layout."""

    card: Card

    def download(self, root: Path, params: Download) -> None:
        """Make the raw files be there under ``root``: paint, fetch, or check for them.

        Raises:
            UserError: the files are behind a consent form and not there; says which to put where.
        """

    def read(self, root: Path) -> pd.DataFrame:
        """One row for each photograph and each label, whatever its state, with columns READ_COLUMNS.

        image_id is unique; path is relative to ``root`` and missing when a label has no photograph; eye is
        left, right or missing; grade is 0-4, missing when a photograph has no label; subset is grading or
        segmentation; official_split is train, val, test or missing.

        Raises:
            UserError: a label file is broken; names the file, the line and the remedy.
        """

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Lesion code (MA, HE, EX, SE) to mask file, for the masks that exist."""


def raw_root(dataset: str) -> Path:
    """Folder of the raw files: the environment's ``DRGRADE_<DATASET>_ROOT``, else ``data/raw/<dataset>``."""
    return Path(os.environ.get(f"DRGRADE_{dataset.upper()}_ROOT") or Path("data/raw") / dataset)


def require(card: Card, root: Path, *paths: str) -> None:
    """Check that a dataset which the user must bring is there.

    Raises:
        UserError: one of ``paths`` (relative to ``root``) does not exist; gives the card's instructions.
    """
    for path in paths:
        if not (root / path).exists():
            todo = card.instructions.format(root=root, source=card.source)
            raise UserError(f"{root / path}: not found, and {card.title} cannot be fetched for you: {todo}")

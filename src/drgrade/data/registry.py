"""What a dataset is, and where its raw files lie.

A dataset is a class in its own module of this package, registered under the module's name:

>>> @DATASETS.register("mine")
... class Mine:
...     card = Card(name="mine", title="My photographs", ...)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pandas as pd

from drgrade.data.listing import raw_root as raw_root
from drgrade.errors import UserError
from drgrade.params import Download
from drgrade.plugins import Registry
from drgrade.schema import GRADES

log = logging.getLogger(__name__)

DATASETS = Registry("drgrade.data")

READ_COLUMNS = (
    "image_id", "path", "patient_id", "eye", "grade", "quality_label", "subset", "official_split"
)  # fmt: skip
"""Columns of the table that ``Dataset.read`` returns."""


@dataclass(frozen=True)
class Count:
    """How many photographs a part of a complete dataset has, and how they are graded."""

    photographs: int
    labels: str | None = None
    """Label file of the part, relative to the dataset's root; None where nothing is labelled."""
    grades: tuple[int, ...] | None = None
    """Photographs of grade 0 to 4; ungradable ones are in none of them. None where no source says."""


@dataclass(frozen=True)
class Card:
    """What a user must know about a dataset before using it."""

    name: str
    title: str
    version: str
    licence: str
    source: str
    access: Literal["synthetic", "open", "form"]
    citation: str
    instructions: str
    """Which files to put where; ``{root}`` stands for the dataset's folder, ``{source}`` for the source."""
    kaggle: str | None = None
    """Name of the competition on Kaggle that holds the files."""
    counts: Mapping[str, Count] = field(default_factory=dict)
    """What the complete dataset holds, by part: an official split, several (``val+test``), ``all`` where
    there is none, each after ``segmentation `` for photographs with masks."""


class Dataset(Protocol):
    """Reader of one dataset's official layout."""

    card: Card

    def download(self, root: Path, params: Download) -> None:
        """Bring the raw files to ``root``: paint, fetch, or check for them.

        Raises:
            UserError: the files are behind a consent form and not there; says which to put where.
        """

    def read(self, root: Path) -> pd.DataFrame:
        """One row for each photograph and each label, whatever its state, with columns READ_COLUMNS.

        image_id is unique; path is relative to ``root`` and missing when a label has no photograph; eye is
        left, right or missing; grade is 0-4, missing when a photograph has no label; quality_label is the
        dataset's own judgement (good, usable, reject), missing where it gives none; subset is grading or
        segmentation; official_split is train, val, test or missing.

        Raises:
            UserError: a label file is broken; names the file, the line and the remedy.
        """

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Lesion code (MA, HE, EX, SE) to mask file, for the masks that exist."""


def require(card: Card, root: Path, *paths: str) -> None:
    """Check that a dataset which the user must bring is there.

    Raises:
        UserError: one of ``paths`` (relative to ``root``) does not exist; gives the card's instructions.
    """
    for path in paths:
        if not (root / path).exists():
            todo = card.instructions.format(root=root, source=card.source)
            raise UserError(f"{root / path}: not found, and {card.title} cannot be fetched for you: {todo}")


def count_report(card: Card, table: pd.DataFrame, root: Path) -> list[str]:
    """Compare what was read with what the complete dataset holds.

    A photograph counts as labelled with a grade or, without one, as ungradable (reject).

    Args:
        card: the dataset's, with its ``counts``.
        table: READ_COLUMNS, as ``Dataset.read`` returns it.
        root: the dataset's folder, for the messages.

    Returns:
        One line for each part of which something is missing or too much; empty for the complete dataset.

    Raises:
        UserError: a label file has more lines than the dataset has photographs, more of a grade, or all lines
            but other grades: it is not the official one.
    """
    parts = table["official_split"].fillna("all").where(
        table["subset"] == "grading", "segmentation " + table["official_split"].fillna("all")
    )  # fmt: skip
    lines = []
    for part, expected in card.counts.items():
        prefix, _, names = part.rpartition(" ")
        rows = table[parts.isin([f"{prefix} {name}".strip() for name in names.split("+")])]
        photographs = int(rows["path"].notna().sum())
        labels = matched = expected.photographs
        if expected.labels is not None:
            labelled = rows["grade"].notna() | (rows["quality_label"] == "reject")
            labels, matched = int(labelled.sum()), int((labelled & rows["path"].notna()).sum())
            _check_labels(expected, root / expected.labels, labels, rows["grade"])
        if {photographs, labels, matched} != {expected.photographs}:
            found = f"{photographs} photographs" + (f", {labels} labels" if expected.labels else "")
            found += f", of which {matched} match" if matched < min(photographs, labels) else ""
            lines.append(f"{card.title}, {part}: {found}; complete it has {expected.photographs}")
    return lines


def _check_labels(expected: Count, file: Path, labels: int, grades: "pd.Series[int]") -> None:
    """Refuse a label file that cannot be a part of the official one."""
    counts = tuple(int((grades == grade).sum()) for grade in GRADES)
    wrong = labels > expected.photographs
    if expected.grades is not None:
        complete = labels == expected.photographs
        wrong |= complete and counts != expected.grades
        wrong |= any(found > most for found, most in zip(counts, expected.grades, strict=True))
    if wrong:
        official = f", of grades 0 to 4 {_listed(expected.grades)}" if expected.grades else ""
        raise UserError(
            f"{file}: {labels} labels, of grades 0 to 4 {_listed(counts)}, but the official file has "
            f"{expected.photographs}{official}; fetch it again, or bring other grades as dataset 'folder'"
        )


def _listed(counts: tuple[int, ...]) -> str:
    return "/".join(map(str, counts))

"""Interface, description and registry of datasets.

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
    """Number of photographs in a part of the complete dataset, and their grades."""

    photographs: int
    labels: str | None = None
    """Label file of the part, relative to the dataset's root; None if there are no labels."""
    grades: tuple[int, ...] | None = None
    """Number of photographs of grades 0 to 4, without ungradable ones. None if no source states it."""


@dataclass(frozen=True)
class Card:
    """Description of a dataset for its users."""

    name: str
    title: str
    version: str
    licence: str
    source: str
    access: Literal["synthetic", "open", "form"]
    citation: str
    instructions: str
    """Which files to put where; ``{root}`` stands for the dataset's folder, ``{source}`` by ``source``."""
    kaggle: str | None = None
    """Name of the Kaggle competition with the files."""
    counts: Mapping[str, Count] = field(default_factory=dict)
    """Numbers for the complete dataset by part: an official split, several (``val+test``), or ``all`` if
    there is none; photographs with masks have the prefix ``segmentation ``."""
    defects: tuple[str, ...] = ()
    """Known defects, and overlaps with other datasets and with weights; one or two sentences each."""


class Dataset(Protocol):
    """Reader of one dataset's official layout."""

    card: Card

    def download(self, root: Path, params: Download) -> None:
        """Bring the raw files to ``root``: paint them, download them, or check that they exist.

        Raises:
            UserError: the files need a consent form and are missing; says which to put where.
        """

    def read(self, root: Path) -> pd.DataFrame:
        """Return one row for each photograph and each label, whatever its state, with columns READ_COLUMNS.

        image_id is unique; path is relative to ``root`` and missing when a label has no photograph; eye is
        left, right or missing; grade is 0-4, missing when a photograph has no label; quality_label is the
        dataset's own label (good, usable, reject), missing if it has none; subset is grading or segmentation;
        official_split is train, val, test or missing.

        Raises:
            UserError: a label file is invalid; names the file, the line and the remedy.
        """

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return the existing mask files of a photograph by lesion code (MA, HE, EX, SE)."""


def require(card: Card, root: Path, *paths: str) -> None:
    """Check that the files of a dataset that the user must provide exist.

    Raises:
        UserError: one of ``paths`` (relative to ``root``) does not exist; shows the card's instructions.
    """
    for path in paths:
        if not (root / path).exists():
            todo = card.instructions.format(root=root, source=card.source)
            raise UserError(f"{root / path}: not found, and {card.title} cannot be fetched for you: {todo}")


def count_report(card: Card, table: pd.DataFrame, root: Path) -> list[str]:
    """Compare the photographs and labels that were read with the numbers of the complete dataset.

    A photograph counts as labelled if it has a grade or is labelled as ungradable (reject).

    Args:
        card: card of the dataset, with its ``counts``.
        table: READ_COLUMNS, as ``Dataset.read`` returns it.
        root: the dataset's folder, for the messages.

    Returns:
        One line for each part with missing or additional photographs; empty for the complete dataset.

    Raises:
        UserError: a label file is not the official one: it has more lines than the dataset has photographs,
            more of one grade, or the right number of lines with other grades.
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
    """Raise a UserError if a label file cannot be a subset of the official one."""
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

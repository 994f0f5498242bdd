"""What a grader is, and what it is given.

A grader is one module of this package with one class, registered under the module's name:

>>> @GRADERS.register("majority")
... class Majority(Grader): ...

Its experiments, seeds, folds, predictions and rows of the leaderboard come by themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from drgrade.images.store import Pictures
from drgrade.plugins import Registry
from drgrade.schema import CROPS, GRADES, INDEX, read_table

GRADERS = Registry("drgrade.grading")


@dataclass(frozen=True)
class Photographs:
    """Graded crops: a store and the rows of it that belong to one split.

    Attributes:
        images: store of uint8 RGB crops (N, S, S, 3), shared between splits.
        table: one row for each photograph: image_id, patient_id, eye, grade, row (in ``images``).
    """

    images: Pictures
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> np.ndarray:
        """Row numbers in ``images``, int64 (n,)."""
        return self.table["row"].to_numpy(np.int64)

    @property
    def grades(self) -> np.ndarray:
        """Grades 0-4, int64 (n,)."""
        return self.table["grade"].to_numpy(np.int64)


def graded(index: Path, crops: Path) -> pd.DataFrame:
    """Index rows that have a grade and a crop, with their ``row`` in the store."""
    table = read_table(index, INDEX)
    cut = read_table(crops, CROPS)
    table = table[(table["subset"] == "grading") & (table["status"] == "ok") & table["grade"].notna()]
    cut = cut[cut["status"] == "ok"]
    return table.merge(cut[["image_id", "row"]], on="image_id", validate="one_to_one")


def splits(table: pd.DataFrame, select: str) -> Iterator[tuple[int | None, dict[str, pd.DataFrame]]]:
    """The trainings of one seed: one with a hold-out split, one a fold with cross-validation.

    In fold k the photographs of fold k are the test. With ``select: best`` those of fold k + 1
    validate; with ``last`` nothing needs them and they train.
    """
    if table["fold"].isna().all():
        yield None, {part: table[table["split"] == part] for part in ("train", "val", "test")}
        return
    folds = sorted(table["fold"].dropna().unique())
    for place, fold in enumerate(folds):
        val = folds[(place + 1) % len(folds)] if select == "best" else None
        held_out = table["fold"].eq(val).fillna(False) if val is not None else np.zeros(len(table), bool)
        test = table["fold"].eq(fold).fillna(False)
        yield int(fold), {"train": table[~test & ~held_out], "val": table[held_out], "test": table[test]}


@dataclass(frozen=True)
class Training:
    """All that one training of a grader may use.

    Attributes:
        train: photographs to learn from.
        val: photographs to select on; empty when nothing is held out.
        start: ``random``, ``imagenet`` or a weights file.
        seed: of everything random.
        name: what the log calls it.
        key: identifies the data, for checkpoints.
        run: MLflow run of this training.
    """

    train: Photographs
    val: Photographs
    start: str
    seed: int
    name: str
    key: str
    run: Any


class Grader(ABC):
    """Learns grades from crops and predicts a probability for each grade."""

    def __init__(self, encoder: str, params: dict[str, Any]) -> None:
        """Args: encoder: timm name; params: the ``grade`` block."""
        self.encoder = encoder
        self.settings = params

    @abstractmethod
    def fit(self, training: Training) -> None:
        """Learn from ``training.train``; choose on ``training.val`` only."""

    @abstractmethod
    def predict(self, images: Pictures, rows: np.ndarray) -> np.ndarray:
        """Grade probabilities, float64 (n, 5), of ``images[rows]`` (uint8 crops (N, S, S, 3))."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write ``model.json`` and, where there are any, ``model.safetensors``."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The grader that ``save`` wrote."""


def interpolated(scores: np.ndarray) -> np.ndarray:
    """Grade probabilities whose expectation is the regressed score.

    A score between two grades is shared by its neighbours: 2.3 is grade 2 at 0.7 and grade 3 at 0.3.

    Args:
        scores: (n,), clipped to 0-4.

    Returns:
        float64 (n, 5), rows sum to 1.
    """
    clipped = np.clip(np.asarray(scores, np.float64), GRADES[0], GRADES[-1])
    return np.clip(1 - np.abs(clipped[:, None] - np.array(GRADES)), 0, 1)

"""The trainings of an experiment: one for each seed and, with cross-validation, each fold."""

import csv
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.params.model import Params


class TrainingId(NamedTuple):
    """One training of an experiment.

    Attributes:
        seed: random seed.
        fold: test fold; None without cross-validation.
        part: (k, n) if part k (from 0) of n of the training patients is left out, for out-of-fold features;
            None if all are used.
    """

    seed: int
    fold: int | None
    part: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """Name of its folder: ``seed0``, ``seed0_fold1``, or ``seed0_part0of5``."""
        fold = "" if self.fold is None else f"_fold{self.fold}"
        return f"seed{self.seed}{fold}" + ("_part{}of{}".format(*self.part) if self.part else "")

    def parts(self, count: int) -> "list[TrainingId]":
        """The ``count`` trainings of the same seed and fold that each leave out one part; none for 0."""
        return [self._replace(part=(part, count)) for part in range(count)]


def trainings(params: Params, experiment: str) -> list[TrainingId]:
    """Return all trainings of an experiment, ordered by seed.

    Raises:
        UserError: the file of folds cannot be read.
    """
    seeds = params.experiments[experiment].seeds
    return [TrainingId(seed, fold) for seed in seeds for fold in folds(params)]


def part_trainings(params: Params, experiment: str) -> list[TrainingId]:
    """Return the trainings that leave out a part of the training patients (``out_of_fold``).

    Raises:
        UserError: the file of folds cannot be read.
    """
    count = params.experiments[experiment].out_of_fold
    return [part for whole in trainings(params, experiment) for part in whole.parts(count)]


def folds(params: Params) -> list[int | None]:
    """Return the folds of the dataset ``roles.grade``; [None] without cross-validation.

    Raises:
        UserError: the file of folds cannot be read.
    """
    if params.scheme(params.roles.grade) != "kfold":
        return [None]
    if params.index.folds_file is None:
        return list(range(params.index.folds))
    return list(_listed(Path(params.index.folds_file)))


def _listed(path: Path) -> list[int]:
    """Return the distinct folds of a CSV (image_id, fold); lines without a fold are ignored."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return sorted({int(line["fold"]) for line in csv.DictReader(file) if line["fold"]})
    except FileNotFoundError:
        raise UserError(f"index.folds_file: {path}: no such file; commit it or set the key to null") from None
    except (KeyError, ValueError):
        raise UserError(
            f"index.folds_file: {path}: needs the columns image_id and fold (0, 1, ...); correct it"
        ) from None

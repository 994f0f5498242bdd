"""The trainings of an experiment: one for each seed and, with cross-validation, each fold."""

import csv
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.params.model import Params


class TrainingId(NamedTuple):
    """One training of an experiment; ``fold`` is the test fold, None without cross-validation."""

    seed: int
    fold: int | None

    @property
    def label(self) -> str:
        """Name of its folder: ``seed0``, or ``seed0_fold1``."""
        return f"seed{self.seed}" + ("" if self.fold is None else f"_fold{self.fold}")


def trainings(params: Params, experiment: str) -> list[TrainingId]:
    """Return all trainings of an experiment, ordered by seed.

    Raises:
        UserError: the file of folds cannot be read.
    """
    seeds = params.experiments[experiment].seeds
    return [TrainingId(seed, fold) for seed in seeds for fold in folds(params)]


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

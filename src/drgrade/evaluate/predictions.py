"""Read prediction tables and check them before metrics are computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.evaluate.probabilities import checked_probabilities
from drgrade.evaluate.thresholds import Thresholds
from drgrade.schema import GRADES, PREDICTIONS, conform, read_table

Training = tuple[int, int | None]
"""Seed and fold of one training; the fold is None without cross-validation."""
NOTHING_TESTED = (
    "no predictions of the split test, as the index has no graded test photographs, so nothing can be "
    "evaluated; put the test photographs in place or cross-validate (index.scheme: kfold); with holdout, "
    "raise index.test_fraction"
)
"""Reason of the stages that need test photographs, and what to do."""
PROBABILITIES = [f"p{grade}" for grade in GRADES]
"""Columns of the probabilities of the grades."""


@dataclass(frozen=True)
class Measured:
    """The test predictions of one experiment on one dataset, photographs in order of image_id.

    Attributes:
        name: name of the experiment.
        dataset: name of the dataset it was tested on.
        seeds: training seeds, ascending (S,).
        photographs: image_id, patient_id, grade; one row per photograph (N).
        predicted: predicted grades, int64 (S, N).
        score: expected grades, float64 (S, N).
        probabilities: class probabilities, float64 (S, N, 5).
        thresholds: thresholds fitted on the validation photographs of each training; empty if a training has
            none.
        fitted: grades predicted by these thresholds, int64 (S, N); None if there are none.
        calibrated: probabilities by method of calibration, fitted on these validation photographs, each
            (S, N, 5).
        uncalibrated: for each other method the reason why it was not fitted.
    """

    name: str
    dataset: str
    seeds: list[int]
    photographs: pd.DataFrame
    predicted: np.ndarray
    score: np.ndarray
    probabilities: np.ndarray
    thresholds: Mapping[Training, Thresholds] = field(default_factory=dict)
    fitted: np.ndarray | None = None
    calibrated: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncalibrated: Mapping[str, str] = field(default_factory=dict)

    @property
    def grades(self) -> np.ndarray:
        """True grades, int64 (N,)."""
        return self.photographs["grade"].to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each photograph, str (N,)."""
        return self.photographs["patient_id"].to_numpy(str)


def gather(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Read one table per training and return the predictions by experiment, in the order of ``paths``.

    With cross-validation the models of all folds grade each external photograph; their probabilities are
    averaged.

    Raises:
        UserError: a table is damaged or empty (nothing was validated or tested), or two tables have the same
            experiment, seed and fold.
    """
    found: dict[str, list[pd.DataFrame]] = {}
    seen: dict[tuple[str, Training], Path] = {}
    for path in paths:
        table = read_table(path, PREDICTIONS)
        if table.empty:
            raise UserError(f"{path}: {NOTHING_TESTED}")
        trainings = table[["experiment", "seed", "fold"]].drop_duplicates()
        if len(trainings) != 1:
            raise UserError(f"{path}: holds {len(trainings)} trainings; one a table is expected")
        name, seed, fold = trainings.iloc[0]
        key = str(name), _training(seed, fold)
        if key in seen:
            raise UserError(f"{path}: the same experiment, seed and fold as {seen[key]}")
        seen[key] = path
        found.setdefault(str(name), []).append(table)
    return {name: _mean_of_folds(pd.concat(tables, ignore_index=True)) for name, tables in found.items()}


def _mean_of_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Average the predictions of all folds: one row for each seed and external photograph."""
    outside = table["split"] == "external"
    keys = ["dataset", "seed", "image_id"]
    external = table[outside]
    if not external.duplicated(keys).any():
        return table
    means = external.groupby(keys, sort=False)[PROBABILITIES].mean().reset_index()
    facts = external.drop_duplicates(keys).drop(columns=PROBABILITIES).assign(fold=None)
    merged = facts.merge(means, on=keys, validate="one_to_one")
    score = merged[PROBABILITIES].to_numpy(float) @ np.array(GRADES)
    merged = merged.assign(score=score, predicted=to_grades(score))
    return conform(pd.concat([table[~outside], merged]), PREDICTIONS)


def trainings(table: pd.DataFrame) -> Iterator[tuple[Training, pd.DataFrame]]:
    """Yield each training with its rows, ascending."""
    for key, rows in table.groupby(["seed", "fold"], dropna=False):
        yield _training(*key), rows


def _training(seed: Any, fold: Any) -> Training:
    return int(seed), None if pd.isna(fold) else int(fold)


def checked(table: pd.DataFrame, name: str) -> Measured:
    """Check the rows of one experiment and dataset, all seeds, and return them as arrays.

    Raises:
        UserError: a grade is missing or invalid, a score is not a finite number, p0 to p4 are no
            probabilities, a patient_id is missing, a photograph occurs twice, or the seeds were tested on
            different photographs.
    """
    table = table.sort_values(["seed", "image_id"])
    check_rows(table, name)
    twice = table[table.duplicated(["seed", "image_id"])]
    if len(twice):
        raise UserError(f"{name}: {twice['image_id'].iloc[0]}: tested twice with one seed")
    parts = [part.reset_index(drop=True) for _, part in table.groupby("seed")]
    facts = ["image_id", "patient_id", "grade"]
    for one, other in pairwise(parts):
        same_rows(one[facts], other[facts], f"{name}: seed {one['seed'][0]}", f"seed {other['seed'][0]}")
    return Measured(
        name=name,
        dataset=str(table["dataset"].iloc[0]),
        seeds=[int(part["seed"][0]) for part in parts],
        photographs=parts[0][facts],
        predicted=np.stack([part["predicted"].to_numpy(np.int64) for part in parts]),
        score=np.stack([part["score"].to_numpy(np.float64) for part in parts]),
        probabilities=np.stack([part[PROBABILITIES].to_numpy(np.float64) for part in parts]),
    )


def check_rows(table: pd.DataFrame, name: str) -> None:
    """Check the values of each row of one experiment.

    Raises:
        UserError: a grade is missing or invalid, a score is not a finite number, p0 to p4 are no
            probabilities, or a patient_id is missing.
    """
    for column in ("grade", "predicted"):
        bad = table[~table[column].isin(GRADES).fillna(False)]
        if len(bad):
            raise UserError(f"{name}: {bad['image_id'].iloc[0]}: {column} is {bad[column].iloc[0]}, not 0-4")
    if table["patient_id"].isna().any():
        raise UserError(f"{name}: {table.loc[table['patient_id'].isna(), 'image_id'].iloc[0]}: no patient_id")
    bad = table[~np.isfinite(table["score"].to_numpy(float, na_value=np.nan))]
    if len(bad):
        raise UserError(f"{name}: {bad['image_id'].iloc[0]}: score is not a number; train it again")
    try:
        checked_probabilities(
            table[PROBABILITIES].to_numpy(float, na_value=np.nan), table["image_id"].tolist()
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def same_rows(one: pd.DataFrame, other: pd.DataFrame, name: str, other_name: str) -> None:
    """Check that two tests used the same photographs, with the same patients and grades.

    Raises:
        UserError: they differ; the message names the first such photograph.
    """
    for has, lacks, rows, against in ((name, other_name, one, other), (other_name, name, other, one)):
        only = sorted(set(rows["image_id"]) - set(against["image_id"]))
        if only:
            raise UserError(
                f"{has}: tested on {len(only)} photographs that {lacks} lacks ({only[0]}, ...); "
                "train both on the same index"
            )
    differs = (one != other).any(axis=1)
    if differs.any():
        raise UserError(
            f"{name}: {one.loc[differs, 'image_id'].iloc[0]} has another grade or patient in {other_name}; "
            "train both on the same index"
        )


def same_photographs(experiments: Sequence[Measured]) -> None:
    """Check that all experiments were tested on the same photographs.

    Raises:
        UserError: they do not.
    """
    for one in experiments[1:]:
        first = experiments[0]
        same_rows(first.photographs, one.photographs, first.name, one.name)

"""Test predictions, with what is fitted on the validation photographs of the same training.

These are thresholds between grades, and calibrators of probabilities. No test photograph is used for either.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.calibration import Calibrator, fit_isotonic_grades, fit_temperature
from drgrade.evaluate.predictions import (
    PROBABILITIES,
    Measured,
    Training,
    check_rows,
    checked,
    trainings,
)
from drgrade.evaluate.thresholds import Thresholds, fit_thresholds, grades_by

METHODS: dict[str, Callable[..., Calibrator]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic_grades,
}
"""Methods of calibration: functions of true grades (N,) and probabilities (N, 5)."""


def tested(name: str, table: pd.DataFrame) -> Measured:
    """Return the test predictions of one experiment after checking them.

    Thresholds and calibrators are those of the same training: with cross-validation, of the photograph's own
    fold.

    Raises:
        UserError: there are no test rows, or they are invalid; see :func:`.checked`.
    """
    test = table[table["split"] == "test"].sort_values(["seed", "image_id"], ignore_index=True)
    if test.empty:
        raise UserError(f"{name}: no predictions of the split test; is index.test_fraction 0?")
    measured = checked(test, name)
    validation = validation_rows(name, table)
    measured = with_calibration(measured, validation, partial(_by_training, test))
    thresholds = thresholds_of(validation)
    if not thresholds:
        return measured
    fitted = np.empty(len(test), dtype=np.int64)
    for training, rows in trainings(test):
        fitted[rows.index] = grades_by(rows["score"], thresholds[training])
    return replace(measured, thresholds=thresholds, fitted=fitted.reshape(measured.score.shape))


def _by_training(test: pd.DataFrame, calibrators: Mapping[Training, Calibrator]) -> Floats:
    """Probabilities (S, N, 5), each row calibrated by its own training's calibrator."""
    found = np.empty((len(test), len(PROBABILITIES)))
    for training, rows in trainings(test):
        found[rows.index] = calibrators[training].apply(rows[PROBABILITIES].to_numpy(float))
    return found.reshape(test["seed"].nunique(), -1, len(PROBABILITIES))


def tested_externally(name: str, table: pd.DataFrame) -> list[Measured]:
    """Return the predictions of one experiment on each external dataset, by dataset name; may be empty.

    Thresholds and calibrators are fitted on the validation photographs of the experiment's own dataset. With
    cross-validation, scores and probabilities are means over folds, and so are the thresholds and what the
    folds' calibrators make of these probabilities.

    Raises:
        UserError: the rows are invalid; see :func:`.checked`.
    """
    outside = table[table["split"] == "external"]
    validation = validation_rows(name, table)
    thresholds = thresholds_of(validation)
    found = []
    for _, rows in outside.groupby("dataset", sort=True):
        one = checked(rows, name)
        one = with_calibration(one, validation, partial(_by_mean, one))
        found.append(_graded_by_mean(one, thresholds) if thresholds else one)
    return found


def _of_seed(fitted: Mapping[Training, Any], seed: int) -> list[Any]:
    """What was fitted for the folds of one seed."""
    return [one for (trained, _), one in fitted.items() if trained == seed]


def _by_mean(measured: Measured, calibrators: Mapping[Training, Calibrator]) -> Floats:
    """Probabilities (S, N, 5), calibrated by each fold's calibrator and averaged over the folds."""
    return np.stack(
        [
            np.mean([one.apply(rows) for one in _of_seed(calibrators, seed)], axis=0)
            for seed, rows in zip(measured.seeds, measured.probabilities, strict=True)
        ]
    )


def _graded_by_mean(measured: Measured, thresholds: Mapping[Training, Thresholds]) -> Measured:
    """Add the grades by the thresholds of each seed, averaged over its folds."""
    fitted = np.empty(measured.score.shape, dtype=np.int64)
    for row, seed in enumerate(measured.seeds):
        fitted[row] = grades_by(measured.score[row], np.mean(_of_seed(thresholds, seed), axis=0))
    return replace(measured, thresholds=thresholds, fitted=fitted)


def validation_rows(name: str, table: pd.DataFrame) -> dict[Training, pd.DataFrame]:
    """Return the graded validation rows of each training that was tested; none for some, perhaps.

    Raises:
        UserError: a validation row is invalid.
    """
    val = table[(table["split"] == "val") & table["grade"].notna()]
    check_rows(val, name)
    found = dict(trainings(val))
    return {
        training: found.get(training, val.head(0))
        for training, _ in trainings(table[table["split"] == "test"])
    }


def thresholds_of(validation: Mapping[Training, pd.DataFrame]) -> dict[Training, Thresholds]:
    """Fit thresholds on the validation rows of each training; none at all if one has no rows."""
    if any(rows.empty for rows in validation.values()):
        return {}
    return {
        training: fit_thresholds(rows["score"], rows["grade"].astype(int))
        for training, rows in validation.items()
    }


def fitted_thresholds(name: str, table: pd.DataFrame) -> dict[Training, Thresholds]:
    """Fit thresholds on the graded validation photographs of each training of one experiment.

    Returns:
        Thresholds by training; empty if a training that was tested has no such photographs.

    Raises:
        UserError: a validation row is invalid.
    """
    return thresholds_of(validation_rows(name, table))


def with_calibration(
    measured: Measured,
    validation: Mapping[Training, pd.DataFrame],
    apply: Callable[[Mapping[Training, Calibrator]], Floats],
) -> Measured:
    """Add the probabilities calibrated by each of METHODS, or the reason why a method cannot be fitted.

    Args:
        measured: predictions.
        validation: graded validation rows of each training.
        apply: function of the calibrators by training that returns probabilities (S, N, 5).
    """
    calibrated, reasons = {}, {}
    for method in METHODS:
        try:
            calibrated[method] = apply(fitted_calibrators(method, validation))
        except UserError as error:
            reasons[method] = str(error)
    return replace(measured, calibrated=calibrated, uncalibrated=reasons)


def fitted_calibrators(
    method: str, validation: Mapping[Training, pd.DataFrame]
) -> dict[Training, Calibrator]:
    """Fit one of METHODS on the graded validation rows of each training.

    Raises:
        UserError: it cannot be fitted for one of them; the message names seed and fold.
    """
    found = {}
    for (seed, fold), rows in validation.items():
        training = f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"
        if rows.empty:
            raise UserError(f"{training}: no graded validation photographs")
        try:
            found[seed, fold] = METHODS[method](
                rows["grade"].to_numpy(int), rows[PROBABILITIES].to_numpy(float)
            )
        except UserError as error:
            raise UserError(f"{training}: {str(error).removeprefix('calibration: ')}") from None
    return found

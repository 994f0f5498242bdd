"""Test predictions, with what was fitted on the validation photographs of the same training.

These are thresholds between grades, and calibrators of probabilities: see :mod:`drgrade.evaluate.fits`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.calibration import Calibrator
from drgrade.evaluate.fits import METHODS, NOTHING_VALIDATES, Fit, Whose
from drgrade.evaluate.predictions import (
    NOTHING_TESTED,
    PROBABILITIES,
    Measured,
    Training,
    checked,
    trainings,
)
from drgrade.evaluate.thresholds import Thresholds, grades_by

Value = TypeVar("Value")


def tested(name: str, table: pd.DataFrame, fits: Mapping[Whose, Fit]) -> Measured:
    """Return the test predictions of one experiment after checking them.

    Thresholds and calibrators are those of the same training: with cross-validation, of the photograph's own
    fold.

    Args:
        name: name of the experiment.
        table: its predictions, all seeds and folds.
        fits: what was fitted on its validation photographs; may be empty.

    Raises:
        UserError: there are no test rows, or they are invalid; see :func:`.checked`.
    """
    test = table[table["split"] == "test"].sort_values(["seed", "image_id"], ignore_index=True)
    if test.empty:
        raise UserError(f"{name}: {NOTHING_TESTED}")
    measured = checked(test, name)
    of_training = _of_trainings(test, fits)
    measured = with_calibration(measured, of_training, partial(_by_training, test))
    thresholds = thresholds_of(of_training)
    if not thresholds:
        return measured
    fitted = np.empty(len(test), dtype=np.int64)
    for training, rows in trainings(test):
        fitted[rows.index] = grades_by(rows["score"], thresholds[training])
    return replace(measured, thresholds=thresholds, fitted=fitted.reshape(measured.score.shape))


def _of_trainings(test: pd.DataFrame, fits: Mapping[Whose, Fit]) -> dict[Training, Fit | None]:
    """The fit of each training that was tested; None where there is none."""
    return {training: fits.get(training) for training, _ in trainings(test)}


def _by_training(test: pd.DataFrame, calibrators: Mapping[Training, Calibrator]) -> Floats:
    """Probabilities (S, N, 5), each row calibrated by its own training's calibrator."""
    found = np.empty((len(test), len(PROBABILITIES)))
    for training, rows in trainings(test):
        found[rows.index] = calibrators[training].apply(rows[PROBABILITIES].to_numpy(float))
    return found.reshape(test["seed"].nunique(), -1, len(PROBABILITIES))


def tested_externally(name: str, table: pd.DataFrame, fits: Mapping[Whose, Fit]) -> list[Measured]:
    """Return the predictions of one experiment on each external dataset, by dataset name; may be empty.

    Thresholds and calibrators are fitted on the validation photographs of the experiment's own dataset. With
    cross-validation, scores and probabilities are means over folds, and so are the thresholds and what the
    folds' calibrators make of these probabilities. Arguments as in :func:`tested`.

    Raises:
        UserError: the rows are invalid; see :func:`.checked`.
    """
    outside = table[table["split"] == "external"]
    of_training = _of_trainings(table[table["split"] == "test"], fits)
    thresholds = thresholds_of(of_training)
    found = []
    for _, rows in outside.groupby("dataset", sort=True):
        one = checked(rows, name)
        one = with_calibration(one, of_training, partial(_by_mean, one))
        found.append(_graded_by_mean(one, thresholds) if thresholds else one)
    return found


def _of_seed(fitted: Mapping[Training, Value], seed: int) -> list[Value]:
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


def thresholds_of(fits: Mapping[Training, Fit | None]) -> dict[Training, Thresholds]:
    """Return the thresholds of each training; none at all if one has none."""
    found = {training: fit.thresholds for training, fit in fits.items() if fit is not None and fit.thresholds}
    return found if len(found) == len(fits) else {}


def with_calibration(
    measured: Measured,
    fits: Mapping[Training, Fit | None],
    apply: Callable[[Mapping[Training, Calibrator]], Floats],
) -> Measured:
    """Add the probabilities calibrated by each of METHODS, or the reason why a method was not fitted.

    Args:
        measured: predictions.
        fits: the fit of each training.
        apply: function of the calibrators by training that returns probabilities (S, N, 5).
    """
    calibrated, reasons = {}, {}
    for method in METHODS:
        calibrators = {
            training: fit.calibrators[method]
            for training, fit in fits.items()
            if fit is not None and method in fit.calibrators
        }
        lacking = next((training for training in fits if training not in calibrators), None)
        if lacking is None:
            calibrated[method] = apply(calibrators)
        else:
            reasons[method] = f"{_named(lacking)}: {_reason(fits[lacking], method)}"
    return replace(measured, calibrated=calibrated, uncalibrated=reasons)


def _named(training: Training) -> str:
    seed, fold = training
    return f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"


def _reason(fit: Fit | None, method: str) -> str:
    """Why a method was not fitted."""
    return NOTHING_VALIDATES if fit is None else fit.reasons[method]

"""What is fitted on graded validation photographs: thresholds, calibrators, operating points, sets of grades.

A :class:`Fit` belongs to one training, or to the mean prediction of several: of all seeds (of one fold), or
of all seeds and folds. No test photograph is used for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.calibration import Calibrator, fit_isotonic_grades, fit_temperature
from drgrade.evaluate.conformal import ConformalSets, fit_sets
from drgrade.evaluate.metrics import REFERABLE
from drgrade.evaluate.operating import OperatingPoint, call, choose
from drgrade.evaluate.predictions import NOTHING_TESTED, PROBABILITIES, check_rows, trainings
from drgrade.evaluate.probabilities import at_least, checked_probabilities
from drgrade.evaluate.thresholds import Thresholds, fit_thresholds
from drgrade.params import Calibrate

METHODS: dict[str, Callable[..., Calibrator]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic_grades,
}
"""Methods of calibration: functions of true grades (N,) and probabilities (N, 5)."""
NONE = "none"
"""Instead of a method: probabilities as the network gives them."""
NOTHING_VALIDATES = (
    "no graded validation photographs; give index.val_fraction a value above 0, or with kfold select: best"
)
Whose = tuple[int | None, int | None]
"""Seed and fold. The seed is None for the mean over seeds; the fold is None for the mean over folds, and
without cross-validation."""


@dataclass(frozen=True)
class Fit:
    """What was fitted on the graded validation photographs of one training, or of the mean of several.

    Attributes:
        seed: training seed; None for the mean over seeds.
        fold: test fold; None for the mean over folds, and without cross-validation.
        n: number of these photographs.
        patients: number of their patients.
        thresholds: thresholds between grades with the highest QWK; None if n is 0.
        calibrators: by name, those of METHODS that could be fitted.
        method: which of them the operating points use, or NONE.
        points: operating points by name, on the probability of referable DR by ``method``; may be empty.
        sets: sets of grades, from probabilities that are not calibrated: so no photograph is used twice. None
            if n is 0.
        reasons: why something is missing, by name: ``points``, or a method.
    """

    seed: int | None
    fold: int | None
    n: int
    patients: int
    thresholds: Thresholds | None
    calibrators: Mapping[str, Calibrator]
    method: str
    points: Mapping[str, OperatingPoint]
    sets: ConformalSets | None
    reasons: Mapping[str, str]

    @property
    def whose(self) -> Whose:
        """Seed and fold."""
        return self.seed, self.fold

    def calibrated(self, probabilities: ArrayLike) -> Floats:
        """Return probabilities (N, 5), calibrated by ``method``."""
        if self.method == NONE:
            return checked_probabilities(probabilities)
        return self.calibrators[self.method].apply(probabilities)

    def referable(self, probabilities: ArrayLike) -> Floats:
        """Return the calibrated probability (N,) of referable DR, from probabilities (N, 5)."""
        return at_least(self.calibrated(probabilities))[:, REFERABLE - 1]

    def called(self, probabilities: ArrayLike, point: str) -> NDArray[np.bool_]:
        """Return which photographs (N,) are called referable at an operating point, from (N, 5)."""
        return call(self.referable(probabilities), self.points[point])


def fit(rows: pd.DataFrame, params: Calibrate, whose: Whose) -> Fit:
    """Fit everything that can be fitted on the photographs; the reasons say what could not.

    Args:
        rows: a row for each photograph: grade, score, p0 to p4, patient_id; may be empty.
        params: method of calibration, and the sets' kind and coverage.
        whose: seed and fold that the predictions are from.
    """
    patients = rows["patient_id"].nunique()
    if rows.empty:
        missing = dict.fromkeys((*METHODS, "points"), NOTHING_VALIDATES)
        return Fit(*whose, 0, 0, None, {}, NONE, {}, None, missing)
    grades, probabilities = rows["grade"].to_numpy(np.int64), rows[PROBABILITIES].to_numpy(float)
    calibrators, reasons = {}, {}
    for name, method in METHODS.items():
        try:
            calibrators[name] = method(grades, probabilities)
        except UserError as error:
            reasons[name] = str(error).removeprefix("calibration: ")
    used = params.method if params.method in calibrators else NONE
    calibrated = calibrators[used].apply(probabilities) if used != NONE else probabilities
    points: Mapping[str, OperatingPoint] = {}
    try:
        points = choose(grades >= REFERABLE, at_least(calibrated)[:, REFERABLE - 1])
    except UserError as error:
        reasons["points"] = str(error).removeprefix("operating points: ")
    sets = fit_sets(grades, probabilities, params.alpha, params.score, rows["patient_id"].to_numpy(str))
    thresholds = fit_thresholds(rows["score"], grades)
    return Fit(*whose, len(rows), patients, thresholds, calibrators, used, points, sets, reasons)


def fit_experiment(name: str, table: pd.DataFrame, params: Calibrate) -> list[Fit]:
    """Fit on the validation photographs of each training of an experiment, and of means of trainings.

    Args:
        name: name of the experiment.
        table: its predictions, all seeds and folds.
        params: see :func:`fit`.

    Returns:
        A fit for each training that was validated or tested, for the mean over seeds of each fold, and for
        the mean over seeds and folds. If one of the trainings has no validation photographs, neither has
        their mean.

    Raises:
        UserError: a validation row is invalid, or nothing was validated or tested.
    """
    val = table[(table["split"] == "val") & table["grade"].notna()]
    check_rows(val, name)
    of_training = dict(trainings(val))
    own = table[table["split"].isin(["val", "test"])]
    if own.empty:
        raise UserError(f"{name}: {NOTHING_TESTED}")
    fits = []
    for whose, members in groups([training for training, _ in trainings(own)]):
        parts = [of_training.get(member, val.head(0)) for member in members]
        complete = all(len(part) for part in parts)
        fits.append(fit(mean_of(pd.concat(parts)) if complete else val.head(0), params, whose))
    return fits


def groups(trained: list[tuple[int, int | None]]) -> Iterator[tuple[Whose, list[tuple[int, int | None]]]]:
    """Yield each training, each fold's seeds together, and with folds everything together."""
    for training in trained:
        yield training, [training]
    folds = sorted({fold for _, fold in trained if fold is not None})
    for fold in folds:
        yield (None, fold), [one for one in trained if one[1] == fold]
    yield (None, None), trained


def by_whose(fits: Iterable[Fit]) -> dict[Whose, Fit]:
    """Return fits by seed and fold."""
    return {one.whose: one for one in fits}


def mean_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each photograph, by image_id: the mean of the predictions it has."""
    rows = rows.assign(score=rows["score"].astype(float))
    how = dict.fromkeys(("patient_id", "grade", "fold"), "first") | dict.fromkeys(
        ("score", *PROBABILITIES), "mean"
    )
    return rows.groupby("image_id", as_index=False).agg(how)

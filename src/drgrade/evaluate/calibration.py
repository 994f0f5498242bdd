"""Calibration of grade probabilities.

A calibrator is fitted on validation photographs and turns probabilities (N, 5) into probabilities (N, 5):

- :class:`Temperature` divides all log-probabilities by one number. Source: Guo et al., ICML 2017.
- :class:`IsotonicReferable` replaces the probability of referable DR by a non-decreasing function of it.
  Source: Zadrozny and Elkan, KDD 2002.
- :class:`IsotonicGrades` does so for the probability of at least grade k, k = 1 to 4.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.metrics import REFERABLE
from drgrade.evaluate.probabilities import (
    aligned,
    at_least,
    checked_probabilities,
    log_probabilities,
    log_softmax,
)
from drgrade.schema import GRADES

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature."""
TEMPERATURE_PHOTOGRAPHS = 15
"""Fewest photographs to fit one parameter on."""
ISOTONIC_PHOTOGRAPHS = 100
"""Fewest photographs to fit a function of any non-decreasing shape on."""
REMEDY = "raise index.val_fraction to get more validation photographs"


@dataclass(frozen=True)
class Temperature:
    """Divides log-probabilities by a temperature and normalises: above 1 is less confident, below 1 more.

    The order of the grades by probability stays.
    """

    temperature: float
    method: Literal["temperature"] = "temperature"

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Return calibrated probabilities (N, 5)."""
        return np.exp(log_softmax(log_probabilities(probabilities) / self.temperature))


@dataclass(frozen=True)
class IsotonicCurve:
    """A non-decreasing function of a probability: straight lines between its points, constant outside.

    Attributes:
        x: probabilities before calibration, ascending.
        y: probabilities after it, non-decreasing.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, probability: ArrayLike) -> Floats:
        """Return the function's values (N,) at probabilities (N,)."""
        return np.interp(np.asarray(probability, dtype=np.float64), self.x, self.y)


@dataclass(frozen=True)
class IsotonicReferable:
    """Calibrates the probability of referable DR; the proportions on either side of grade 2 stay.

    Where the grades of one side have no probability, they get equal parts of what the side gets.
    """

    curve: IsotonicCurve
    method: Literal["isotonic_referable"] = "isotonic_referable"

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Return calibrated probabilities (N, 5)."""
        rows = checked_probabilities(probabilities)
        referable = self.curve(at_least(rows)[:, REFERABLE - 1])[:, None]
        lower, higher = _scaled(rows[:, :REFERABLE], 1 - referable), _scaled(rows[:, REFERABLE:], referable)
        return np.concatenate([lower, higher], axis=1)


@dataclass(frozen=True)
class IsotonicGrades:
    """Calibrates the probability of at least grade k, k = 1 to 4.

    Curves fitted one by one can make grade 3 or higher more probable than grade 2 or higher. Then the nearest
    non-increasing probabilities (least squares) are used; the ranked probability score never gets worse by
    that.

    Attributes:
        curves: functions of the probability of at least grade 1, 2, 3 and 4.
    """

    curves: tuple[IsotonicCurve, ...]
    method: Literal["isotonic_grades"] = "isotonic_grades"

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Return calibrated probabilities (N, 5)."""
        before = at_least(checked_probabilities(probabilities))
        after = np.stack([curve(column) for curve, column in zip(self.curves, before.T, strict=True)], axis=1)
        return -np.diff(non_increasing(after), prepend=1, append=0, axis=1)


Calibrator = Annotated[Temperature | IsotonicReferable | IsotonicGrades, Field(discriminator="method")]
"""A calibrator of any kind; pydantic converts it to and from JSON by its ``method``, without loss."""


def fit_temperature(y: ArrayLike, probabilities: ArrayLike) -> Temperature:
    """Return the temperature in TEMPERATURES with the lowest negative log-likelihood; 1 if none is better.

    Args:
        y: (N,) true grades 0-4 of validation photographs.
        probabilities: (N, 5) their probabilities.

    Raises:
        UserError: there are fewer than TEMPERATURE_PHOTOGRAPHS or all have the same grade, or the
            probabilities are invalid.
    """
    grades, rows = _enough(y, probabilities, TEMPERATURE_PHOTOGRAPHS)
    if len(np.unique(grades)) < 2:
        raise UserError(
            f"calibration: all {len(grades)} validation photographs have grade {grades[0]}; {REMEDY}"
        )
    from scipy.optimize import minimize_scalar

    logits, place = log_probabilities(rows), np.arange(len(grades))

    def loss(temperature: float) -> float:
        return -float(log_softmax(logits / temperature)[place, grades].mean())

    # The loss is convex in 1 / temperature, so it has one minimum. The search never reaches the ends.
    low, high = TEMPERATURES
    search = minimize_scalar(
        lambda logarithm: loss(np.exp(logarithm)),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return Temperature(min((1.0, low, high, float(np.exp(search.x))), key=loss))


def fit_isotonic_referable(y: ArrayLike, probabilities: ArrayLike) -> IsotonicReferable:
    """Fit the isotonic regression of referable DR on its probability.

    Args:
        y: (N,) true grades 0-4 of validation photographs.
        probabilities: (N, 5) their probabilities.

    Raises:
        UserError: there are fewer than ISOTONIC_PHOTOGRAPHS, all or none of them are referable, or the
            probabilities are invalid.
    """
    return IsotonicReferable(_fit_curve(y, probabilities, REFERABLE))


def fit_isotonic_grades(y: ArrayLike, probabilities: ArrayLike) -> IsotonicGrades:
    """Fit the isotonic regressions of at least grade k on its probability, k = 1 to 4.

    Args:
        y: (N,) true grades 0-4 of validation photographs.
        probabilities: (N, 5) their probabilities.

    Raises:
        UserError: there are fewer than ISOTONIC_PHOTOGRAPHS, for some k all or none of them have at least
            grade k, or the probabilities are invalid.
    """
    return IsotonicGrades(tuple(_fit_curve(y, probabilities, grade) for grade in GRADES[1:]))


def _fit_curve(y: ArrayLike, probabilities: ArrayLike, grade: int) -> IsotonicCurve:
    """Fit the isotonic regression of ``y >= grade`` on its probability."""
    grades, rows = _enough(y, probabilities, ISOTONIC_PHOTOGRAPHS)
    positive = grades >= grade
    if positive.all() or not positive.any():
        raise UserError(
            f"calibration: {'all' if positive.all() else 'none'} of the {len(positive)} validation "
            f"photographs have grade {grade} or higher; {REMEDY}, or use the method temperature"
        )
    from sklearn.isotonic import IsotonicRegression  # slow to import

    regression = IsotonicRegression(y_min=0, y_max=1)
    regression.fit(at_least(rows)[:, grade - 1], positive.astype(np.float64))
    return IsotonicCurve(tuple(regression.X_thresholds_.tolist()), tuple(regression.y_thresholds_.tolist()))


def _enough(y: ArrayLike, probabilities: ArrayLike, fewest: int) -> tuple[NDArray[np.int64], Floats]:
    """Return grades (N,) and probabilities (N, 5) to fit on, after checking their number and values."""
    grades, rows = aligned(y, probabilities)
    if len(grades) < fewest:
        raise UserError(f"calibration: {len(grades)} validation photographs, needs {fewest}; {REMEDY}")
    return grades, rows


def non_increasing(values: ArrayLike) -> Floats:
    """Return the nearest non-increasing rows (N, K), by least squares, of rows (N, K).

    Entry i is the minimum over a <= i of the maximum over b >= i of the mean of the entries a to b. Source:
    Robertson, Wright and Dykstra, Order Restricted Statistical Inference, 1988, section 1.4.
    """
    rows = np.asarray(values, dtype=np.float64)
    entries = range(rows.shape[1])
    mean = {(a, b): rows[:, a : b + 1].mean(axis=1) for a in entries for b in entries[a:]}
    nearest = np.empty_like(rows)
    for i in entries:
        nearest[:, i] = np.min(
            [np.max([mean[a, b] for b in entries[i:]], axis=0) for a in entries[: i + 1]], axis=0
        )
    return nearest


def _scaled(rows: Floats, sums: Floats) -> Floats:
    """Scale rows (N, K) to sums (N, 1), in proportion; equal parts where a row is 0."""
    parts = rows.sum(axis=1, keepdims=True)
    return sums * np.divide(rows, parts, out=np.full(rows.shape, 1 / rows.shape[1]), where=parts > 0)

"""Agreement between true and predicted grades.

All metrics that depend on grades only are computed from 5x5 confusion matrices (rows: true grades), any
number of them at once, so that the bootstrap in ``intervals`` uses the same code.

Degenerate cases do not raise but have defined values:

- no photographs, or a denominator of 0 (for example sensitivity without referable eyes): NaN;
- kappa, if all true and predicted grades are the same single grade: 1.0. The formula gives 0/0, but the
  agreement is perfect, and with NaN such a model could never be selected;
- kappa of a constant prediction for several true grades: 0.0, as the formula gives.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.errors import UserError
from drgrade.schema import GRADES

N_GRADES = len(GRADES)
MIDPOINTS = (0.5, 1.5, 2.5, 3.5)
"""A score at or above the k-th midpoint (counted from 1) is at least grade k."""
REFERABLE = 2
"""Lowest referable grade: moderate non-proliferative DR."""
SIGHT_THREATENING = 3
"""Lowest sight-threatening grade: severe non-proliferative DR."""

Floats = NDArray[np.float64]


def to_grades(score: ArrayLike, image_ids: Sequence[str] | None = None) -> NDArray[np.int8]:
    """Convert continuous scores to grades by MIDPOINTS: 0.49 is grade 0, 0.5 is grade 1, above 3.5 is 4.

    Args:
        score: (N,) expected grades; values below 0 and above 4 are allowed.
        image_ids: (N,) names, for the error message.

    Raises:
        UserError: a score is NaN or infinite; the message names the first such photograph.
    """
    score = np.asarray(score, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(score))
    if bad.size:
        name = image_ids[bad[0]] if image_ids is not None else f"row {bad[0]}"
        raise UserError(
            f"{name}: the score is {score[bad[0]]}, not a number ({bad.size} of {score.size} such rows); "
            "the training that made it diverged, lower its learning rate"
        )
    return np.digitize(score, MIDPOINTS).astype(np.int8)


def confusion(y: ArrayLike, predicted: ArrayLike) -> NDArray[np.int64]:
    """Return the confusion matrix (5, 5): entry (i, j) counts photographs of grade i predicted as j.

    Raises:
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    pair = [np.asarray(values) for values in (y, predicted)]
    if pair[0].shape != pair[1].shape or pair[0].ndim != 1:
        raise ValueError(f"grades of shape {pair[0].shape} and {pair[1].shape}, need two (N,)")
    for values in pair:
        if not np.isin(values, GRADES).all():
            raise ValueError(f"grades must be integers 0-4, found {values[~np.isin(values, GRADES)][0]}")
    cell = pair[0].astype(np.int64) * N_GRADES + pair[1].astype(np.int64)
    return np.bincount(cell, minlength=N_GRADES**2).reshape(N_GRADES, N_GRADES)


def divide(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Divide elementwise; NaN, without a warning, where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


Weights = Literal["quadratic", "linear", "unweighted"]


def kappa(matrix: ArrayLike, weights: Weights) -> Floats:
    """Return Cohen's kappa (...) of confusion matrices (..., 5, 5): 1 - observed / expected disagreement.

    The weight of a disagreement between grades i and j is (i - j)^2 (quadratic), |i - j| (linear) or 1
    (unweighted). Values of different kinds are not comparable; RETFound logs the unweighted one.
    Source: Cohen, Psychological Bulletin 1968.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    distance = np.abs(np.subtract.outer(np.arange(N_GRADES), np.arange(N_GRADES)))
    cost = {"quadratic": distance**2, "linear": distance, "unweighted": distance > 0}[weights].astype(float)
    n = matrix.sum((-2, -1))
    observed = (matrix * cost).sum((-2, -1))
    chance = matrix.sum(-1)[..., :, None] * matrix.sum(-2)[..., None, :]
    expected = divide((chance * cost).sum((-2, -1)), n)
    # The expected disagreement is 0 only if all true and predicted grades are the same grade.
    return np.where(expected == 0, 1.0, 1 - divide(observed, expected))


def accuracy(matrix: ArrayLike) -> Floats:
    """Return the share of correctly graded photographs (...) of confusion matrices (..., 5, 5)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def recall(matrix: ArrayLike) -> Floats:
    """Return the recall of each grade, (..., 5); NaN for a grade that does not occur in the truth."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return divide(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1))


def mean_of_present(values: Floats) -> Floats:
    """Mean over the last axis of the values that are not NaN; NaN if there are none."""
    present = ~np.isnan(values)
    return divide(np.where(present, values, 0).sum(-1), present.sum(-1))


def balanced_accuracy(matrix: ArrayLike) -> Floats:
    """Mean recall over the grades that occur in the truth."""
    return mean_of_present(recall(matrix))


def macro_f1(matrix: ArrayLike) -> Floats:
    """Mean F1 over the grades that occur in truth or prediction (scikit-learn's default labels)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return mean_of_present(divide(2 * hits, matrix.sum(-1) + matrix.sum(-2)))


def mean_absolute_error(matrix: ArrayLike) -> Floats:
    """Return the mean absolute difference between predicted and true grade, in grades."""
    matrix = np.asarray(matrix, dtype=np.float64)
    distance = np.abs(np.subtract.outer(np.arange(N_GRADES), np.arange(N_GRADES)))
    return divide((matrix * distance).sum((-2, -1)), matrix.sum((-2, -1)))


def qwk(y: ArrayLike, predicted: ArrayLike) -> float:
    """Return the quadratic weighted kappa over the five grades; -1 to 1, 0 is chance level.

    Args:
        y: (N,) true grades 0-4.
        predicted: (N,) predicted grades 0-4.

    Raises:
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    return float(kappa(confusion(y, predicted), "quadratic"))


def sensitivity(matrix: ArrayLike, lowest: int) -> Floats:
    """Return the share (...) of photographs of grade ``lowest`` or higher that are graded so."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return divide(matrix[..., lowest:, lowest:].sum((-2, -1)), matrix[..., lowest:, :].sum((-2, -1)))


def specificity(matrix: ArrayLike, lowest: int) -> Floats:
    """Return the share (...) of photographs below grade ``lowest`` that are graded so."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return divide(matrix[..., :lowest, :lowest].sum((-2, -1)), matrix[..., :lowest, :].sum((-2, -1)))


def summary(matrix: ArrayLike) -> dict[str, Floats]:
    """Return all scalar metrics (...) of confusion matrices (..., 5, 5), by name.

    ``referable_sensitivity`` and ``referable_specificity`` are those of the predicted grades, which are at
    least 2 at a score of 1.5 or more.
    """
    return {
        "qwk": kappa(matrix, "quadratic"),
        "linear_kappa": kappa(matrix, "linear"),
        "unweighted_kappa": kappa(matrix, "unweighted"),
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "mae": mean_absolute_error(matrix),
        "referable_sensitivity": sensitivity(matrix, REFERABLE),
        "referable_specificity": specificity(matrix, REFERABLE),
    }

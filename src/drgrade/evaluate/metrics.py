"""Agreement between true and predicted grades.

Everything that depends on grades alone is computed from the 5x5 confusion matrix (rows: truth), for
any number of matrices at once, so that the bootstrap in ``intervals`` is the same code as the metric.

Degenerate cases have one answer each, and none raises:

- no photographs, or a metric whose denominator is empty (sensitivity without referable eyes): NaN;
- a kappa whose truth and prediction are one and the same single grade: 1.0. Chance agreement is then
  complete and the formula reads 0/0, but nothing disagrees, and a NaN would never win a model selection;
- a constant prediction against mixed grades: 0.0, as the formula says.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.errors import UserError
from drgrade.schema import GRADES

N_GRADES = len(GRADES)
MIDPOINTS = (0.5, 1.5, 2.5, 3.5)
"""A score at or above the k-th midpoint is at least grade k."""
REFERABLE = 2
"""Lowest referable grade: moderate non-proliferative DR."""

Floats = NDArray[np.float64]


def to_grades(score: ArrayLike, image_ids: Sequence[str] | None = None) -> NDArray[np.int8]:
    """Grades of continuous scores by the midpoints: 0.49 is grade 0, 0.5 is grade 1, above 3.5 is 4.

    Args:
        score: (N,) expected grades; values below 0 and above 4 are allowed.
        image_ids: (N,) names, for the error message.

    Raises:
        UserError: a score is NaN or infinite; names the first photograph that has one.
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
    """Confusion matrix, (5, 5): entry (i, j) counts photographs of grade i called j.

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


def _divide(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Division with NaN, and no warning, where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


Weights = Literal["quadratic", "linear", "unweighted"]


def kappa(matrix: ArrayLike, weights: Weights) -> Floats:
    """Cohen's kappa of confusion matrices (..., 5, 5): 1 - observed / expected disagreement.

    Disagreement of grades i and j costs (i - j)^2, |i - j|, or 1 when they differ. The three kinds are
    different scales (RETFound logs the unweighted one): never compare one with another.
    Source: Cohen, Psychological Bulletin 1968.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    distance = np.abs(np.subtract.outer(np.arange(N_GRADES), np.arange(N_GRADES)))
    cost = {"quadratic": distance**2, "linear": distance, "unweighted": distance > 0}[weights].astype(float)
    n = matrix.sum((-2, -1))
    observed = (matrix * cost).sum((-2, -1))
    chance = matrix.sum(-1)[..., :, None] * matrix.sum(-2)[..., None, :]
    expected = _divide((chance * cost).sum((-2, -1)), n)
    # No expected disagreement means that both marginals sit on one and the same grade.
    return np.where(expected == 0, 1.0, 1 - _divide(observed, expected))


def accuracy(matrix: ArrayLike) -> Floats:
    """Share of photographs whose grade is exactly right, of confusion matrices (..., 5, 5)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return _divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def recall(matrix: ArrayLike) -> Floats:
    """Share of each grade's photographs that are called so, (..., 5); NaN for a grade that is absent."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return _divide(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1))


def _mean_of_present(values: Floats) -> Floats:
    present = ~np.isnan(values)
    return _divide(np.where(present, values, 0).sum(-1), present.sum(-1))


def balanced_accuracy(matrix: ArrayLike) -> Floats:
    """Mean recall over the grades that occur in the truth."""
    return _mean_of_present(recall(matrix))


def macro_f1(matrix: ArrayLike) -> Floats:
    """Mean F1 over the grades that occur in truth or prediction (scikit-learn's default labels)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _mean_of_present(_divide(2 * hits, matrix.sum(-1) + matrix.sum(-2)))


def mean_absolute_error(matrix: ArrayLike) -> Floats:
    """Mean distance of predicted and true grade, in grades."""
    matrix = np.asarray(matrix, dtype=np.float64)
    distance = np.abs(np.subtract.outer(np.arange(N_GRADES), np.arange(N_GRADES)))
    return _divide((matrix * distance).sum((-2, -1)), matrix.sum((-2, -1)))


def qwk(y: ArrayLike, predicted: ArrayLike) -> float:
    """Quadratic weighted kappa over the five grades; -1 to 1, 0 is chance.

    Args:
        y: (N,) true grades 0-4.
        predicted: (N,) predicted grades 0-4.

    Raises:
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    return float(kappa(confusion(y, predicted), "quadratic"))


def auc(positive: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    Args:
        positive: (N,) bool.
        score: (N,) any finite numbers.

    Returns:
        0 to 1, or NaN when all are positive or none is.
    """
    from sklearn.metrics import roc_auc_score  # a second that trainings, which ask for QWK, do not wait

    positive = np.asarray(positive, dtype=bool)
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, score))


def referable(y: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """Detection of referable DR (grade 2 or more) by the score.

    Args:
        y: (N,) true grades 0-4.
        score: (N,) expected grades.

    Returns:
        ``referable_auc``, and ``referable_sensitivity`` and ``referable_specificity`` where a score of
        at least 1.5 refers the eye. NaN where the truth has no eye of the kind.
    """
    positive = np.asarray(y) >= REFERABLE
    score = np.asarray(score, dtype=np.float64)
    called = score >= MIDPOINTS[REFERABLE - 1]
    return {
        "referable_auc": auc(positive, score),
        "referable_sensitivity": float(_divide((called & positive).sum(), positive.sum())),
        "referable_specificity": float(_divide((~called & ~positive).sum(), (~positive).sum())),
    }


def summary(y: ArrayLike, predicted: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """Every metric of one set of predictions that is a single number, by name.

    Args:
        y: (N,) true grades 0-4.
        predicted: (N,) predicted grades 0-4.
        score: (N,) expected grades.

    Raises:
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    matrix = confusion(y, predicted)
    return {
        "qwk": float(kappa(matrix, "quadratic")),
        "linear_kappa": float(kappa(matrix, "linear")),
        "unweighted_kappa": float(kappa(matrix, "unweighted")),
        "accuracy": float(accuracy(matrix)),
        "balanced_accuracy": float(balanced_accuracy(matrix)),
        "macro_f1": float(macro_f1(matrix)),
        "mae": float(mean_absolute_error(matrix)),
        **referable(y, score),
    }

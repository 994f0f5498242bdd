"""Decision thresholds between grades, fitted to maximise the quadratic weighted kappa (QWK).

QWK is 1 - observed / expected disagreement. For given true grades, both are sums over photographs of a cost
that depends only on the true and the predicted grade. So for any number r, dynamic programming over the
sorted scores finds the thresholds that minimise observed - r * expected. Then r is set to their ratio
observed / expected, and this is repeated until the ratio no longer falls: it is then the smallest possible
one. Source: Dinkelbach, On Nonlinear Fractional Programming, Management Science 1967. All sums are integers
and all ratios are fractions, so the maximum is exact.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.evaluate.metrics import MIDPOINTS, N_GRADES, confusion, to_grades
from drgrade.schema import GRADES

Thresholds = tuple[float, float, float, float]
"""A score at or above the k-th threshold (counted from 1) is at least grade k; non-decreasing, finite."""

COST = np.subtract.outer(GRADES, GRADES) ** 2
"""Quadratic weight of a disagreement, (5, 5)."""
INT64_PHOTOGRAPHS = 2**17
"""Up to this number N of photographs, all sums fit in 64 bits: they are below 2^12 N^3."""


def fit_thresholds(scores: ArrayLike, grades: ArrayLike) -> Thresholds:
    """Return the thresholds with the highest QWK on these photographs; never worse than MIDPOINTS.

    Each threshold lies in the middle between two neighbouring scores. If no score or every score reaches it,
    it is the value closest to its midpoint for which this holds. MIDPOINTS are returned if nothing is better,
    for example without photographs, or if the scores are constant and the grades are not. Among other equally
    good solutions, the one with the lowest fourth threshold is returned; on a tie, the third decides, etc.

    If all true grades are the same grade, the thresholds predict it for every photograph: that has a QWK of 1
    by the definition in :mod:`drgrade.evaluate.metrics`.

    Args:
        scores: (N,) expected grades; values below 0 and above 4 are allowed.
        grades: (N,) true grades 0-4.

    Raises:
        UserError: a score is NaN or infinite.
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    at_midpoints = confusion(grades, to_grades(scores))
    values, place = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    counts = np.zeros((N_GRADES, len(values) + 1), dtype=np.int64)
    np.add.at(counts, (np.asarray(grades, dtype=np.int64), place + 1), 1)
    below = counts.cumsum(axis=1)
    cuts = _cheapest(below, Fraction(0))
    ratio, last = _ratio(_matrix(below, cuts)), None
    while ratio != last:  # falls in each round until it is the smallest
        cuts = _cheapest(below, ratio)
        ratio, last = _ratio(_matrix(below, cuts)), ratio
    return MIDPOINTS if _ratio(at_midpoints) == ratio else _between(values, cuts)


def grades_by(scores: ArrayLike, thresholds: Sequence[float]) -> NDArray[np.int8]:
    """Convert continuous scores (N,) to grades 0-4 (N,) by four non-decreasing thresholds.

    Raises:
        UserError: a score is NaN or infinite.
    """
    to_grades(scores)  # raises for a score that is not finite, which searchsorted would sort last
    return np.searchsorted(thresholds, np.asarray(scores, dtype=np.float64), side="right").astype(np.int8)


def _cheapest(below: NDArray[np.int64], ratio: Fraction) -> list[int]:
    """Return the cuts that minimise observed - ratio * expected disagreement.

    Args:
        below: (5, M + 1) number of photographs of each true grade with one of the m lowest scores; there are
            M different scores.
        ratio: ratio from :func:`_ratio`.

    Returns:
        Non-decreasing m_1 .. m_4: the m_k lowest scores are graded below k.
    """
    sums: NDArray[Any] = below if below[:, -1].sum() <= INT64_PHOTOGRAPHS else below.astype(object)
    chance = sums[:, -1] @ COST  # (5,): expected disagreement of one photograph, by predicted grade, times N
    cost = ratio.denominator * COST - ratio.numerator * chance  # (true, predicted)
    # A cut m_k adds change[k - 1, m_k] to the total cost, whatever the other cuts are.
    change = (cost[:, :-1] - cost[:, 1:]).T @ sums  # (4, M + 1)
    totals = [change[0]]
    for row in change[1:]:
        totals.append(np.minimum.accumulate(totals[-1]) + row)
    cuts = [int(totals[-1].argmin())]
    for total in totals[-2::-1]:
        cuts.insert(0, int(total[: cuts[0] + 1].argmin()))
    return cuts


def _matrix(below: NDArray[np.int64], cuts: Sequence[int]) -> NDArray[np.int64]:
    """Return the confusion matrix (5, 5) of predictions by these cuts."""
    return np.diff(below[:, cuts], axis=1, prepend=0, append=below[:, -1:])


def _ratio(matrix: NDArray[np.int64]) -> Fraction:
    """Return observed / expected disagreement, divided by N: (1 - QWK) / N; 0 if nothing can disagree."""
    observed = int((matrix * COST).sum())
    expected = int((np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) * COST).sum())
    return Fraction(observed, expected) if expected else Fraction(0)


def _between(values: NDArray[np.float64], cuts: Sequence[int]) -> Thresholds:
    """Return the thresholds for cuts of the ascending, different scores ``values``."""
    thresholds = []
    for cut, midpoint in zip(cuts, MIDPOINTS, strict=True):
        if cut == 0:
            threshold = min(midpoint, values[0])
        elif cut == len(values):
            threshold = max(midpoint, np.nextafter(values[-1], np.inf))
        else:
            low, high = values[cut - 1 : cut + 1]
            middle = low / 2 + high / 2
            threshold = middle if middle > low else high  # two adjacent floats have no middle
        thresholds.append(float(threshold))
    first, second, third, fourth = thresholds
    return first, second, third, fourth

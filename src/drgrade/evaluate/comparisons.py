"""Significance of differences between experiments: paired bootstrap, and Holm's correction."""

import numpy as np
from numpy.typing import ArrayLike

from drgrade.bootstrap import Floats


def paired_p_value(one: ArrayLike, other: ArrayLike) -> float:
    """Return the two-sided bootstrap p-value of the difference of a metric between two experiments.

    Twice the smaller of two shares of resamples: difference at most 0, and at least 0. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 15.4. Counts and R are raised by 1, so that no
    p-value is 0. Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, chapter 4. The
    smallest is 2 / (R + 1), and 2 M / (R + 1) after Holm's correction of M comparisons.

    Args:
        one: (R,) metric of one experiment on each resample of the patients.
        other: (R,) metric of the other on the same resamples.

    Returns:
        2 / (R + 1) to 1. Resamples in which either metric is NaN do not count; NaN if none is left.

    Raises:
        ValueError: the lengths differ.
    """
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"resampled values of shape {first.shape} and {second.shape}, need two (R,)")
    difference = first - second
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return float("nan")
    fewer = min((difference <= 0).sum(), (difference >= 0).sum())
    return float(min(1, 2 * (fewer + 1) / (len(difference) + 1)))


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values (M,) corrected for the number of comparisons M, in the same order.

    Reject those up to a level, such as 0.05: then the probability of any wrong rejection is at most that
    level, whatever the dependence of the tests. Source: Holm, Scandinavian Journal of Statistics 1979.

    Args:
        p_values: (M,) between 0 and 1; NaN stays NaN and does not count as a comparison.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN is sorted last
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted

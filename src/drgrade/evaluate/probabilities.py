"""Checks and transforms of grade probabilities (N, 5)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.metrics import N_GRADES
from drgrade.schema import GRADES

SMALLEST = 1e-12
"""Probabilities are raised to this before their logarithm is taken."""
ROUNDING = 1e-3
"""Largest distance from 1 of the sum of a row of probabilities."""


def checked_probabilities(probabilities: ArrayLike, image_ids: Sequence[str] | None = None) -> Floats:
    """Return probabilities as float64 (N, 5), each row divided by its sum.

    Args:
        probabilities: (N, 5) numbers.
        image_ids: (N,) names, for the error message.

    Raises:
        UserError: a row has a negative or undefined number, or its sum is not 1.
        ValueError: the shape is not (N, 5).
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != N_GRADES:
        raise ValueError(f"probabilities of shape {rows.shape}, need (N, {N_GRADES})")
    sums = rows.sum(axis=1)
    bad = np.flatnonzero(~((rows >= 0).all(axis=1) & (np.abs(sums - 1) <= ROUNDING)))
    if bad.size:
        name = image_ids[bad[0]] if image_ids is not None else f"row {bad[0]}"
        raise UserError(
            f"{name}: p0 to p4 are {rows[bad[0]].tolist()}, not probabilities with sum 1 "
            f"({bad.size} of {len(rows)} such rows); if the training diverged, lower its learning rate"
        )
    return rows / sums[:, None]


def aligned(y: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Return checked grades (N,) and probabilities (N, 5)."""
    grades, rows = np.asarray(y), checked_probabilities(probabilities)
    if grades.shape != rows.shape[:1]:
        raise ValueError(f"grades of shape {grades.shape} for {len(rows)} rows of probabilities")
    if not np.isin(grades, GRADES).all():
        raise ValueError(f"grades must be integers 0-4, found {grades[~np.isin(grades, GRADES)][0]}")
    return grades.astype(np.int64), rows


def at_least(probabilities: ArrayLike) -> Floats:
    """Return the probabilities of at least grade 1, 2, 3 and 4, (N, 4), of class probabilities (N, 5)."""
    backwards = np.asarray(probabilities, dtype=np.float64)[:, ::-1]
    return np.minimum(backwards.cumsum(axis=1)[:, -2::-1], 1)  # sums of rounded numbers can exceed 1


def log_probabilities(probabilities: ArrayLike) -> Floats:
    """Return natural logarithms (N, 5) of checked probabilities, at least that of SMALLEST."""
    return np.log(np.maximum(checked_probabilities(probabilities), SMALLEST))


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of the softmax of each row (N, 5)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

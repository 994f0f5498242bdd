"""Operating points: thresholds on the probability of referable DR (grade 2 or higher).

They are chosen on validation photographs, so that a test measures what they are worth. A photograph is called
referable if its probability is at or above the threshold. Choice of a point, exact and without interpolation:

- at a specificity: the highest sensitivity of all thresholds with at least that specificity;
- at a sensitivity: the highest specificity of all thresholds with at least that sensitivity;
- Youden: the highest sensitivity + specificity - 1. Source: Youden, Cancer 1950.

Among equally good thresholds, the first kind takes the highest specificity, the others the highest
sensitivity. The threshold lies in the middle between two neighbouring probabilities; where all or no
photographs are called, it is the value closest to 0.5 for which this holds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.detection import TARGETS

YOUDEN = "youden"
POINTS = (
    *(f"{kind}_{100 * target:.0f}" for kind in ("specificity", "sensitivity") for target in TARGETS),
    YOUDEN,
)
"""Names of the operating points: ``specificity_87`` is the one at a specificity of 0.87."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and how it divides the validation photographs that it was chosen on.

    Attributes:
        name: one of POINTS.
        threshold: lowest probability that is called referable.
        true_positives: number of referable photographs called referable.
        false_negatives: number of referable photographs not called.
        true_negatives: number of other photographs not called.
        false_positives: number of other photographs called referable.
    """

    name: str
    threshold: float
    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int

    @property
    def sensitivity(self) -> float:
        """Share of the referable validation photographs that are called."""
        return self.true_positives / (self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the other validation photographs that are not called."""
        return self.true_negatives / (self.true_negatives + self.false_positives)


def choose(positive: ArrayLike, probability: ArrayLike) -> dict[str, OperatingPoint]:
    """Choose all operating points on validation photographs.

    Args:
        positive: (N,) bool, true where the photograph is referable.
        probability: (N,) probability of referable DR, calibrated if :func:`call` gets calibrated ones.

    Returns:
        The points by name, in the order of POINTS.

    Raises:
        UserError: all or none of the photographs are referable, or a probability is not a finite number.
        ValueError: the lengths differ.
    """
    positive, probability = np.asarray(positive, dtype=bool), _checked(probability)
    if positive.shape != probability.shape:
        raise ValueError(f"shapes {positive.shape} and {probability.shape}, need two (N,)")
    if positive.all() or not positive.any():
        raise UserError(
            f"operating points: {positive.sum()} of {len(positive)} validation photographs are referable, "
            "needs both kinds; raise index.val_fraction to get more validation photographs"
        )
    values, place = np.unique(probability, return_inverse=True)
    # Entry m: the threshold calls all photographs but those with the m lowest probabilities.
    called = [
        len(group) - np.append(0, np.bincount(group, minlength=len(values)).cumsum())
        for group in (place[positive], place[~positive])
    ]
    hits, false_alarms = called
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    points = {}
    for name in POINTS:
        cut = _cut(name, hits, n_negative - false_alarms)
        found, wrong = int(hits[cut]), int(false_alarms[cut])
        points[name] = OperatingPoint(
            name=name,
            threshold=_threshold(values, cut),
            true_positives=found,
            false_negatives=n_positive - found,
            true_negatives=n_negative - wrong,
            false_positives=wrong,
        )
    return points


def call(probability: ArrayLike, point: OperatingPoint) -> NDArray[np.bool_]:
    """Return which photographs (N,) are called referable by their probability (N,) at an operating point.

    Raises:
        UserError: a probability is not a finite number.
    """
    return _checked(probability) >= point.threshold


def _cut(name: str, hits: NDArray[np.int64], rejected: NDArray[np.int64]) -> int:
    """Return the index of the best threshold for the point of this name.

    Args:
        name: one of POINTS.
        hits: number of positives called at each threshold, ascending thresholds; the first calls all.
        rejected: number of negatives not called; the last threshold calls none.
    """
    # Divisions of counts, since they round to the same number as a target such as 0.87 if equal to it.
    sensitivity, specificity = hits / hits[0], rejected / rejected[-1]
    if name == YOUDEN:
        youden = hits * rejected[-1] + rejected * hits[0]  # whole numbers: ties are exact
        return int(np.lexsort((hits, youden))[-1])
    kind, percent = name.split("_")
    target = int(percent) / 100
    first, other, reached = (
        (hits, rejected, specificity) if kind == "specificity" else (rejected, hits, sensitivity)
    )
    allowed = np.flatnonzero(reached >= target)
    return int(allowed[np.lexsort((other[allowed], first[allowed]))[-1]])


def _threshold(values: Floats, cut: int) -> float:
    """Return a threshold above the ``cut`` lowest of the ascending, different probabilities."""
    if cut == 0:
        return float(min(0.5, values[0]))
    if cut == len(values):
        return float(max(0.5, np.nextafter(values[-1], np.inf)))
    low, high = values[cut - 1 : cut + 1]
    middle = low / 2 + high / 2
    return float(middle if middle > low else high)  # two adjacent floats have no middle


def _checked(probability: ArrayLike) -> Floats:
    """Return finite float64 numbers (N,)."""
    values = np.asarray(probability, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(
            f"row {bad[0]}: the probability of referable DR is {values[bad[0]]} ({bad.size} of {values.size} "
            "such rows); if the training diverged, lower its learning rate"
        )
    return values

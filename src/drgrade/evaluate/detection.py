"""Detection of a class of grades by a score: referable DR (grade 2 or higher), sight-threatening DR (3 or 4).

A photograph is called positive if its score reaches a threshold. All metrics derive from the numbers of
positives and negatives at each score, highest score first: their cumulative sums are the numbers called at
each threshold. Photographs are sorted once; a bootstrap resample only weights the patients' counts, so that
thousands of resamples are a few sparse matrix products. Counts are whole numbers, so the sums are exact.

Sensitivity at a specificity is the highest sensitivity of all thresholds whose specificity is at least that;
specificity at a sensitivity likewise. Nothing is interpolated, photographs with equal scores are called
together, and a threshold above all scores is allowed: it has sensitivity 0 and specificity 1.

Degenerate cases have defined values: NaN if there are no positives, and for all metrics but the area under
the precision-recall curve, if there are no negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from drgrade.bootstrap import Floats
from drgrade.evaluate.metrics import divide, mean_of_present
from drgrade.schema import GRADES

TARGETS = (0.87, 0.95)
"""Specificities and sensitivities at which the other one is reported."""


@dataclass(frozen=True)
class Ranking:
    """Photographs of a yes-no question in steps of falling score, counted by patient.

    Photographs with equal scores share a step; so do successive scores that only negatives have, since a
    threshold between them is never better than one above them, and no metric changes.

    Attributes:
        positives: number of positives of each patient in each step (steps, patients).
        negatives: number of negatives, likewise.
    """

    positives: csr_array
    negatives: csr_array

    def values(self, weights: ArrayLike | None = None) -> dict[str, Floats]:
        """Return all metrics on each resample of the patients, by name, each (R,).

        Args:
            weights: (R, patients) weight of each patient, in the order of ``np.unique(patients)``; None for
                the sample itself (R = 1).

        Returns:
            ``auroc``, ``auprc``, and ``sensitivity_at_specificity_T`` and ``specificity_at_sensitivity_T``
            for each of TARGETS, T in percent.
        """
        positives, negatives = self.counts(weights)
        hits, false_alarms = positives.cumsum(axis=0), negatives.cumsum(axis=0)
        n_positive, n_negative = positives.sum(axis=0), negatives.sum(axis=0)
        precision = np.nan_to_num(divide(hits, hits + false_alarms))  # 0 / 0 where it has no weight either
        sensitivity = divide(hits, n_positive)
        specificity = divide(n_negative - false_alarms, n_negative)
        found = {
            "auroc": _auroc(positives, negatives),
            "auprc": divide((positives * precision).sum(axis=0), n_positive),
        }
        for target in TARGETS:
            at = f"{100 * target:.0f}"
            found[f"sensitivity_at_specificity_{at}"] = _best(sensitivity, specificity, target)
            found[f"specificity_at_sensitivity_{at}"] = _best(specificity, sensitivity, target)
        return found

    def auroc(self, weights: ArrayLike | None = None) -> Floats:
        """Return the area under the ROC curve on each resample, (R,); see :meth:`values`."""
        return _auroc(*self.counts(weights))

    def counts(self, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
        """Return the weighted numbers of positives and of negatives in each step, each (steps, R)."""
        patients = self.positives.shape[1]
        rows = np.ones((1, patients)) if weights is None else np.asarray(weights, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != patients:
            raise ValueError(f"weights of shape {rows.shape}, need (R, {patients})")
        return self.positives @ rows.T, self.negatives @ rows.T


def rank(positive: ArrayLike, score: ArrayLike, patients: ArrayLike | None = None) -> Ranking:
    """Sort photographs by score and count them by patient.

    Args:
        positive: (N,) bool, for example ``grades >= REFERABLE``.
        score: (N,) finite numbers; higher speaks for positive. Expected grades or probabilities.
        patients: (N,) patient of each photograph; None if each photograph is a patient of its own.

    Raises:
        ValueError: the lengths differ, or a score is NaN or infinite.
    """
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    names = np.arange(len(score)) if patients is None else np.asarray(patients)
    if not positive.shape == score.shape == names.shape == (len(score),):
        raise ValueError(f"shapes {positive.shape}, {score.shape} and {names.shape}, need three (N,)")
    if not np.isfinite(score).all():
        raise ValueError(f"row {np.flatnonzero(~np.isfinite(score))[0]}: the score is not a finite number")
    units, patient = np.unique(names, return_inverse=True)
    values, place = np.unique(-score, return_inverse=True)
    has_positive = np.bincount(place[positive], minlength=len(values)) > 0
    starts = has_positive | np.append(True, has_positive)[:-1]  # else this score and the last have negatives
    step = (starts.cumsum() - 1)[place]
    shape = int(starts.sum()), len(units)
    return Ranking(_count(step, patient, positive, shape), _count(step, patient, ~positive, shape))


def rank_grades(y: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None) -> list[Ranking]:
    """Rank the photographs by each grade's probability, that grade against all others, for `macro_auroc`.

    Args:
        y: (N,) true grades 0-4.
        probabilities: (N, 5) class probabilities.
        patients: (N,) patient of each photograph, as in :func:`rank`.
    """
    y, probabilities = np.asarray(y), np.asarray(probabilities, dtype=np.float64)
    return [rank(y == grade, probabilities[:, grade], patients) for grade in GRADES]


def macro_auroc(rankings: Sequence[Ranking], weights: ArrayLike | None = None) -> Floats:
    """Return the mean over grades of the area under the ROC curve, one grade against all others, (R,).

    A grade that does not occur in a resample, or is its only one, is left out of that resample's mean.

    Args:
        rankings: five rankings from :func:`rank_grades`.
        weights: (R, patients), as in :meth:`Ranking.values`.
    """
    return mean_of_present(np.stack([ranking.auroc(weights) for ranking in rankings], axis=-1))


def _count(
    step: NDArray[np.int64], patient: NDArray[np.int64], rows: NDArray[np.bool_], shape: tuple[int, int]
) -> csr_array:
    """Count the chosen photographs by step and patient."""
    return coo_array((np.ones(int(rows.sum())), (step[rows], patient[rows])), shape=shape).tocsr()


def _auroc(positives: Floats, negatives: Floats) -> Floats:
    """Share of pairs whose positive scores higher; ties count half. Counts (steps, R), result (R,)."""
    above = positives.cumsum(axis=0) - positives / 2
    return divide((negatives * above).sum(axis=0), positives.sum(axis=0) * negatives.sum(axis=0))


def _best(values: Floats, others: Floats, target: float) -> Floats:
    """Highest value (R,) of the thresholds (steps, R) at which the other metric is at least the target."""
    # The threshold above all scores is not among the steps; its sensitivity of 0 is ``initial``.
    best = np.where(others >= target, values, 0).max(axis=0, initial=0)
    defined = ~np.isnan(values[-1:] + others[-1:]).any(axis=0) & (len(values) > 0)
    return np.where(defined, best, np.nan)

"""Bootstrap over patients: how much a metric varies with the sample of test patients.

The two eyes of a patient are correlated, so patients are resampled, not photographs. A resample is a weight
for each patient; the weighted sum of the patients' confusion matrices is the resample's confusion matrix, so
a thousand resamples are a few matrix products. The interval covers the choice of test patients only; the
spread over training seeds is reported separately.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array

from drgrade.bootstrap import Floats, resample_weights
from drgrade.evaluate.metrics import N_GRADES, kappa


@dataclass(frozen=True)
class Confusions:
    """Confusion matrices of all training seeds, counted by patient.

    Attributes:
        by_patient: the S x 25 cells of each patient, mostly zeros (patients, S * 25). Sparse, because a dense
            product waits for BLAS threads on a busy machine (30 times slower, measured).
    """

    by_patient: csr_array

    def matrices(self, weights: ArrayLike | None = None) -> Floats:
        """Return the confusion matrices (R, S, 5, 5) of each resample of the patients.

        Counts are whole numbers, so the sums are exact whatever their order.

        Args:
            weights: (R, patients) weight of each patient, in the order of ``np.unique(patients)``; None for
                the sample itself (R = 1).
        """
        patients = self.by_patient.shape[0]
        rows = np.ones((1, patients)) if weights is None else np.asarray(weights, dtype=np.float64)
        return (rows @ self.by_patient).reshape(len(rows), -1, N_GRADES, N_GRADES)


def confusions(y: ArrayLike, predicted: ArrayLike, patients: ArrayLike) -> Confusions:
    """Count true and predicted grades by patient; arguments as in :func:`bootstrap`."""
    y, predicted = np.asarray(y, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    seeds = len(predicted)
    cell = np.arange(seeds)[:, None] * N_GRADES**2 + y * N_GRADES + predicted
    places = np.tile(patient, seeds), cell.ravel()
    shape = len(names), seeds * N_GRADES**2
    return Confusions(coo_array((np.ones(cell.size), places), shape=shape).tocsr())


def resampled(
    values: Callable[[Floats], dict[str, Floats]], units: int, resamples: int, seed: int
) -> dict[str, Floats]:
    """Return each metric on each bootstrap resample of the patients.

    Args:
        values: function of weights (r, units) that returns metrics (r, ...), such as
            :meth:`drgrade.evaluate.detection.Ranking.values`.
        units: number of patients.
        resamples: number of resamples R.
        seed: random seed; with the same one and the same patients, all metrics and all experiments are
            evaluated on the same resamples, also those of :func:`bootstrap`.

    Returns:
        Metrics by name, each (R, ...). The 2.5th and 97.5th percentiles are the 95 % interval
        (:func:`drgrade.bootstrap.interval`).
    """
    parts = [values(weights) for weights in resample_weights(units, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def qwk_of(matrices: ArrayLike) -> Floats:
    """Return the quadratic weighted kappa (...) of confusion matrices (..., 5, 5)."""
    return kappa(matrices, "quadratic")


def bootstrap(
    y: ArrayLike,
    predicted: ArrayLike,
    patients: ArrayLike,
    resamples: int,
    seed: int,
    metric: Callable[[ArrayLike], Floats] = qwk_of,
) -> Floats:
    """Return the metric, averaged over training seeds, on each resample of the patients.

    Args:
        y: (N,) true grades 0-4.
        predicted: (S, N) predicted grades 0-4, a row for each training seed.
        patients: (N,) patient of each photograph.
        resamples: number of resamples R.
        seed: random seed; the same seed and patients give the same resamples in every call.
        metric: function of confusion matrices (..., 5, 5) that returns values (...).

    Returns:
        (R,) values. Their 2.5th and 97.5th percentiles are the 95 % interval
        (:func:`drgrade.bootstrap.interval`). The values of two experiments can be subtracted pairwise.
    """
    counted = confusions(y, predicted, patients)

    def matrices(weights: Floats) -> dict[str, Floats]:
        return {"matrices": counted.matrices(weights)}

    return metric(resampled(matrices, counted.by_patient.shape[0], resamples, seed)["matrices"]).mean(1)

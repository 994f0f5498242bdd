"""Bootstrap over patients: how much a metric varies with the sample of test patients.

The two eyes of a patient are correlated, so patients are resampled, not photographs. A resample is a weight
for each patient; the weighted sum of the patients' confusion matrices is the resample's confusion matrix, so
a thousand resamples are a few matrix products. The interval covers the choice of test patients only; the
spread over training seeds is reported separately.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array

from drgrade.bootstrap import Floats, resample_weights
from drgrade.evaluate.metrics import N_GRADES, kappa


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
    y, predicted = np.asarray(y, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    seeds = len(predicted)
    # One row per patient: the confusion matrices of all seeds, seeds x 25 cells, mostly zeros.
    # Sparse, because a dense product waits for BLAS threads on a busy machine (30 times slower, measured).
    # Counts are whole numbers, so the sums are exact whatever their order.
    cell = np.arange(seeds)[:, None] * N_GRADES**2 + y * N_GRADES + predicted
    places = np.tile(patient, seeds), cell.ravel()
    by_patient = coo_array((np.ones(cell.size), places), shape=(len(names), seeds * N_GRADES**2)).tocsr()
    matrices = np.concatenate(
        [weights @ by_patient for weights in resample_weights(len(names), resamples, seed)]
    ).reshape(resamples, seeds, N_GRADES, N_GRADES)
    return metric(matrices).mean(1)

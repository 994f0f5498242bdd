"""How far probabilities are from frequencies: reliability curve, calibration error, Brier score.

The metrics are sums over photographs, any number of them at once, so that the bootstrap uses the same code.
Without photographs they are NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from drgrade.bootstrap import Floats
from drgrade.evaluate.metrics import N_GRADES, REFERABLE, divide
from drgrade.evaluate.probabilities import aligned, at_least, log_probabilities, log_softmax

BINS = 15
"""Bins of equal width of the expected calibration error, as in Guo et al., ICML 2017."""


@dataclass(frozen=True)
class Reliability:
    """Points of a reliability curve: BINS bins of equal width, the k-th from (k - 1) / BINS to k / BINS.

    A bin includes its upper end; the first also 0.

    Attributes:
        probability: mean probability in each bin (BINS,), NaN in an empty one.
        frequency: share of positives in each bin, likewise.
        count: number of photographs in each bin.
    """

    probability: Floats
    frequency: Floats
    count: NDArray[np.int64]


def reliability(positive: ArrayLike, probability: ArrayLike) -> Reliability:
    """Return the reliability curve of a yes-no question.

    Args:
        positive: (N,) bool.
        probability: (N,) probability of positive, 0-1.
    """
    count, forecast, found = _binned(positive, probability)
    return Reliability(divide(forecast, count), divide(found, count), count.astype(np.int64))


def expected_calibration_error(positive: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean distance between probability and frequency over the bins, 0-1.

    Bins are those of :class:`Reliability`, weighted by their numbers of photographs.

    Args:
        positive: (N,) bool. For the top-label error of grades: whether the most probable grade is the true
            one; see :func:`top_label`.
        probability: (N,) probability of positive, 0-1; for the top-label error that of the grade.
    """
    return float(_ece(_binned(positive, probability)))


def top_label(y: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Return whether the most probable grade is the true one, (N,), and its probability, (N,).

    The most probable grade can differ from the predicted one, which is the rounded expected grade.
    """
    grades, rows = aligned(y, probabilities)
    return rows.argmax(axis=1) == grades, rows.max(axis=1, initial=0)


def brier_score(y: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean over photographs of the squared errors, summed over the five grades; 0 (best) to 2."""
    return float(divide(_squared_errors(*aligned(y, probabilities)).sum(), len(np.asarray(y))))


def binary_brier_score(positive: ArrayLike, probability: ArrayLike) -> float:
    """Return the mean squared error of the probability (N,) of positive (N,); 0 (best) to 1."""
    errors = (np.asarray(probability, dtype=np.float64) - np.asarray(positive, dtype=bool)) ** 2
    return float(divide(errors.sum(), len(errors)))


def _squared_errors(grades: NDArray[np.int64], rows: Floats) -> Floats:
    return ((rows - np.eye(N_GRADES)[grades]) ** 2).sum(axis=1)


def _bins(probability: ArrayLike) -> NDArray[np.int64]:
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    return np.searchsorted(inner, np.asarray(probability, dtype=np.float64), side="left")


def _binned(positive: ArrayLike, probability: ArrayLike) -> Floats:
    """Number of photographs, sum of probabilities and number of positives in each bin, (3, BINS)."""
    place = _bins(probability)
    parts = np.ones(len(place)), np.asarray(probability, float), np.asarray(positive, float)
    return np.stack([np.bincount(place, part, minlength=BINS) for part in parts])


def _ece(binned: Floats) -> Floats:
    """Expected calibration error (...) of sums (3, BINS, ...) as :func:`_binned` gives them."""
    count, forecast, found = binned
    return divide(np.abs(forecast - found).sum(axis=0), count.sum(axis=0))


@dataclass(frozen=True)
class CalibrationSums:
    """Sums over the photographs of each patient, from which all calibration metrics follow.

    Attributes:
        top_label: number of photographs, sum of the highest probabilities and number of photographs whose
            most probable grade is the true one, by bin and patient (3 * BINS, patients).
        referable: the same with the probability of referable DR and the number of referable photographs.
        losses: Brier score, Brier score of referable DR, negative log-likelihood (3, patients).
    """

    top_label: csr_array
    referable: csr_array
    losses: csr_array

    def values(self, weights: ArrayLike | None = None) -> dict[str, Floats]:
        """Return all metrics on each resample of the patients, by name, each (R,).

        The resamples of an expected calibration error lie above the sample's own value on average, since
        repeated photographs move a bin's frequency further from its probability.

        Args:
            weights: (R, patients) weight of each patient, in the order of ``np.unique(patients)``; None for
                the sample itself (R = 1).

        Returns:
            ``ece`` (top label), ``brier``, ``nll`` (natural logarithm), ``referable_ece`` and
            ``referable_brier``.
        """
        patients = self.losses.shape[1]
        columns = np.ones((patients, 1)) if weights is None else np.asarray(weights, np.float64).T
        top_label, referable = (
            (sums @ columns).reshape(3, BINS, -1) for sums in (self.top_label, self.referable)
        )
        brier, referable_brier, nll = divide(self.losses @ columns, top_label[0].sum(axis=0))
        return {
            "ece": _ece(top_label),
            "brier": brier,
            "nll": nll,
            "referable_ece": _ece(referable),
            "referable_brier": referable_brier,
        }


def calibration_sums(
    y: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None
) -> CalibrationSums:
    """Sum up by patient what the calibration metrics need.

    Args:
        y: (N,) true grades 0-4.
        probabilities: (N, 5) class probabilities.
        patients: (N,) patient of each photograph; None if each photograph is a patient of its own.

    Raises:
        UserError: the probabilities are invalid.
        ValueError: the lengths differ, or a grade is not an integer 0-4.
    """
    grades, rows = aligned(y, probabilities)
    names = np.arange(len(grades)) if patients is None else np.asarray(patients)
    patient = np.unique(names, return_inverse=True)[1]
    positive, probability = grades >= REFERABLE, at_least(rows)[:, REFERABLE - 1]
    correct, confidence = top_label(grades, rows)
    log_likelihood = log_softmax(log_probabilities(rows))[np.arange(len(grades)), grades]
    losses = _squared_errors(grades, rows), (probability - positive) ** 2, -log_likelihood
    return CalibrationSums(
        top_label=_binned_by_patient(correct, confidence, patient),
        referable=_binned_by_patient(positive, probability, patient),
        losses=_sum_by_patient(losses, [np.full(len(grades), row) for row in range(3)], patient, 3),
    )


def _binned_by_patient(
    positive: NDArray[np.bool_], probability: Floats, patient: NDArray[np.int64]
) -> csr_array:
    """What :func:`_binned` returns, for each patient (3 * BINS, patients)."""
    place = _bins(probability)
    parts = np.ones(len(place)), probability, positive.astype(np.float64)
    return _sum_by_patient(parts, [row * BINS + place for row in range(3)], patient, 3 * BINS)


def _sum_by_patient(
    parts: Sequence[Floats], rows: Sequence[NDArray[np.int64]], patient: NDArray[np.int64], n_rows: int
) -> csr_array:
    """Sum values (K, N) by their row of the result (K, N) and by patient (N,): (n_rows, patients)."""
    cells = np.concatenate(rows), np.tile(patient, len(parts))
    shape = n_rows, int(patient.max(initial=-1)) + 1
    return coo_array((np.concatenate(parts), cells), shape=shape).tocsr()

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss
from tests.evaluate.tables import drawn

from drgrade.bootstrap import resample_weights
from drgrade.evaluate import reliability
from drgrade.evaluate.intervals import resampled
from drgrade.evaluate.probabilities import at_least
from drgrade.evaluate.reliability import BINS


def brute_ece(positive, probability):
    """Guo et al. 2017, equation 3: bins ((m - 1) / M, m / M], the first with 0."""
    error = 0.0
    for low, high in zip(np.arange(BINS) / BINS, np.arange(1, BINS + 1) / BINS, strict=True):
        rows = (probability > low) & (probability <= high) | ((low == 0) & (probability == 0))
        if rows.any():
            error += abs(probability[rows].mean() - positive[rows].mean()) * rows.mean()
    return error


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(bool, n),
            hnp.arrays(float, n, elements=st.floats(0, 1) | st.sampled_from([0, 1 / 15, 0.2, 1 / 3, 1])),
        )
    )
)
def test_binary_metrics_match_their_definitions(sample):
    positive, probability = sample
    error = reliability.expected_calibration_error(positive, probability)
    assert error == pytest.approx(brute_ece(positive, probability), abs=1e-12)
    expected = brier_score_loss(positive, probability, labels=[False, True])
    assert reliability.binary_brier_score(positive, probability) == pytest.approx(expected, abs=1e-12)
    curve = reliability.reliability(positive, probability)
    assert curve.count.sum() == len(positive)
    gap = np.nansum(np.abs(curve.probability - curve.frequency) * curve.count) / len(positive)
    assert gap == pytest.approx(error, abs=1e-12)


def test_reliability_by_hand():
    curve = reliability.reliability([0, 1, 1, 1], [0.0, 1 / 15, 0.07, 1.0])
    assert curve.count.tolist() == [2, 1, *[0] * 12, 1]
    np.testing.assert_allclose(curve.probability[[0, 1, 14]], [1 / 30, 0.07, 1])
    np.testing.assert_allclose(curve.frequency[[0, 1, 14]], [0.5, 1, 1])
    assert np.isnan(curve.frequency[2:14]).all()


def test_metrics_of_grades_match_scikit_learn():
    grades, probabilities = drawn(200)
    expected = brier_score_loss(grades, probabilities, scale_by_half=False, labels=range(5))
    assert reliability.brier_score(grades, probabilities) == pytest.approx(expected, abs=1e-12)
    correct, confidence = reliability.top_label(grades, probabilities)
    np.testing.assert_array_equal(correct, probabilities.argmax(axis=1) == grades)
    np.testing.assert_allclose(confidence, probabilities.max(axis=1), rtol=1e-12)


def test_impossible_grades_are_refused():
    with pytest.raises(ValueError, match="integers 0-4"):
        reliability.brier_score([7], [[0.2] * 5])


def test_worst_and_best_brier_scores():
    assert reliability.brier_score([0, 4], [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]) == 2
    assert reliability.brier_score([0, 4], [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]) == 0
    assert reliability.binary_brier_score([True], [0.0]) == 1


def expected_values(grades, probabilities):
    referable = at_least(probabilities)[:, 1]
    return {
        "ece": reliability.expected_calibration_error(*reliability.top_label(grades, probabilities)),
        "brier": reliability.brier_score(grades, probabilities),
        "nll": -log_softmax(np.log(probabilities), axis=1)[np.arange(len(grades)), grades].mean(),
        "referable_ece": reliability.expected_calibration_error(grades >= 2, referable),
        "referable_brier": reliability.binary_brier_score(grades >= 2, referable),
    }


def test_sums_by_patient_give_the_metrics_of_the_repeated_photographs():
    grades, probabilities = drawn(60)
    patients = np.random.default_rng(1).choice([f"p{patient:02d}" for patient in range(25)], 60)
    names, patient = np.unique(patients, return_inverse=True)
    sums = reliability.calibration_sums(grades, probabilities, patients)
    values = resampled(sums.values, len(names), resamples=8, seed=2)
    for place, weights in enumerate(np.concatenate(list(resample_weights(len(names), 8, 2)))):
        rows = np.arange(60).repeat(weights[patient].astype(int))
        for name, expected in expected_values(grades[rows], probabilities[rows]).items():
            assert values[name][place] == pytest.approx(expected, abs=1e-12), name
    whole = reliability.calibration_sums(grades, probabilities).values()
    assert whole == pytest.approx(expected_values(grades, probabilities), abs=1e-12)


def test_no_photographs_give_nan_without_a_warning(recwarn):
    nothing = np.empty(0, int), np.empty((0, 5))
    assert all(np.isnan(value).all() for value in reliability.calibration_sums(*nothing).values().values())
    assert math.isnan(reliability.brier_score(*nothing))
    assert math.isnan(reliability.binary_brier_score([], []))
    assert math.isnan(reliability.expected_calibration_error([], []))
    assert np.isnan(reliability.reliability([], []).frequency).all()
    assert not recwarn.list

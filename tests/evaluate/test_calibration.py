import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression, isotonic_regression
from sklearn.metrics import log_loss
from tests.evaluate.tables import drawn

from drgrade.errors import UserError
from drgrade.evaluate.calibration import (
    IsotonicCurve,
    IsotonicGrades,
    IsotonicReferable,
    Temperature,
    fit_isotonic_grades,
    fit_isotonic_referable,
    fit_temperature,
    non_increasing,
)
from drgrade.evaluate.probabilities import at_least
from drgrade.evaluate.reliability import brier_score, expected_calibration_error

PROBABILITIES = hnp.arrays(float, st.tuples(st.integers(1, 20), st.just(5)), elements=st.floats(0, 1)).map(
    lambda parts: (parts + 1e-9) / (parts + 1e-9).sum(axis=1, keepdims=True)
)
EDGE_CASES = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0.2] * 5, [0, 0.5, 0.5, 0, 0]])
FITS = fit_temperature, fit_isotonic_referable, fit_isotonic_grades


def valid(probabilities):
    return (probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)


def test_temperature_has_the_lowest_log_loss():
    grades, probabilities = drawn(400, confidence=2.5)
    logits = np.log(probabilities)
    fitted = fit_temperature(grades, probabilities)
    best = minimize(lambda t: log_loss(grades, softmax(logits / t, axis=1)), x0=[1.0], method="Nelder-Mead")
    assert fitted.temperature == pytest.approx(best.x[0], rel=1e-3)
    assert log_loss(grades, fitted.apply(probabilities)) <= best.fun + 1e-9


@pytest.mark.parametrize("confidence", [0.4, 1.0, 3.0])
def test_temperature_undoes_false_confidence(confidence):
    grades, probabilities = drawn(20_000, confidence)
    assert fit_temperature(grades, probabilities).temperature == pytest.approx(confidence, rel=0.05)


def test_temperature_by_hand():
    applied = Temperature(2.0).apply([[0.64, 0.36, 0, 0, 0]])
    # square roots 0.8, 0.6 and sqrt(1e-12) for each 0
    np.testing.assert_allclose(applied, np.array([[0.8, 0.6, 1e-6, 1e-6, 1e-6]]) / 1.400003)


def test_temperature_stays_within_its_limits():
    """All most probable grades are right, or none is."""
    grades = np.arange(20) % 5
    right = 0.9 * np.eye(5)[grades] + 0.02
    assert fit_temperature(grades, right).temperature == 0.05
    assert fit_temperature((grades + 1) % 5, right).temperature == 20


def test_temperature_is_1_where_none_is_better():
    assert fit_temperature(np.arange(20) % 5, np.full((20, 5), 0.2)).temperature == 1


@given(PROBABILITIES, st.sampled_from([0.05, 0.7, 20.0]))
def test_temperature_keeps_the_order_of_the_grades(probabilities, temperature):
    applied = Temperature(temperature).apply(probabilities)
    assert valid(applied)
    order = probabilities.argsort(axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(applied, order, axis=1), axis=1) >= 0).all()


@pytest.mark.parametrize("fit", FITS)
def test_fitted_calibrators_give_probabilities(fit):
    calibrator = fit(*drawn(150, confidence=3))
    probabilities = np.concatenate([drawn(300, seed=1)[1], EDGE_CASES])
    applied = calibrator.apply(probabilities)
    assert applied.shape == probabilities.shape
    assert valid(applied)
    np.testing.assert_array_equal(calibrator.apply(probabilities[::-1])[::-1], applied)  # row by row
    assert calibrator.apply(np.empty((0, 5))).shape == (0, 5)


@pytest.mark.parametrize("fit", FITS)
def test_calibration_helps_new_photographs(fit):
    new, probabilities = drawn(4000, confidence=3, seed=1)
    applied = fit(*drawn(4000, confidence=3)).apply(probabilities)
    before, after = (
        expected_calibration_error(new >= 2, at_least(rows)[:, 1]) for rows in (probabilities, applied)
    )
    assert after < 0.4 * before
    assert brier_score(new, applied) < brier_score(new, probabilities)


def test_isotonic_referable_is_scikit_learns():
    grades, probabilities = drawn(300, confidence=3)
    new = drawn(100, seed=1)[1]
    regression = IsotonicRegression(out_of_bounds="clip").fit(probabilities[:, 2:].sum(axis=1), grades >= 2)
    applied = fit_isotonic_referable(grades, probabilities).apply(new)
    np.testing.assert_allclose(
        applied[:, 2:].sum(axis=1), regression.predict(new[:, 2:].sum(axis=1)), atol=1e-9
    )
    for side in (slice(0, 2), slice(2, 5)):
        share = new[:, side] / new[:, side].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            applied[:, side], share * applied[:, side].sum(axis=1, keepdims=True), atol=1e-12
        )


def test_isotonic_referable_by_hand():
    calibrator = IsotonicReferable(IsotonicCurve((0.2, 0.6), (0.0, 0.8)))
    applied = calibrator.apply([[0.4, 0.2, 0.1, 0.3, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])
    # 0.4 becomes 0.4; 1 becomes 0.8, whose rest has no proportions; 0 becomes 0
    np.testing.assert_allclose(applied, [[0.4, 0.2, 0.1, 0.3, 0], [0.1, 0.1, 0, 0, 0.8], [1, 0, 0, 0, 0]])


def test_isotonic_grades_are_scikit_learns_where_they_are_compatible():
    grades, probabilities = drawn(500, confidence=3)
    new = drawn(100, seed=1)[1]
    separate = np.stack(
        [
            IsotonicRegression(out_of_bounds="clip")
            .fit(probabilities[:, grade:].sum(axis=1), grades >= grade)
            .predict(new[:, grade:].sum(axis=1))
            for grade in range(1, 5)
        ],
        axis=1,
    )
    compatible = (np.diff(separate, axis=1) <= 0).all(axis=1)
    assert 20 < compatible.sum() < 100
    applied = at_least(fit_isotonic_grades(grades, probabilities).apply(new))
    np.testing.assert_allclose(applied[compatible], separate[compatible], atol=1e-9)


def test_isotonic_grades_by_hand():
    """At least grade 2 gets 0.2 and at least grade 3 gets 0.6: both become 0.4."""
    constant = [IsotonicCurve((0.0, 1.0), (value, value)) for value in (0.9, 0.2, 0.6, 0.1)]
    applied = IsotonicGrades(tuple(constant)).apply([[0.2] * 5])
    np.testing.assert_allclose(applied, [[0.1, 0.5, 0, 0.3, 0.1]], atol=1e-15)


@given(hnp.arrays(float, (6, 4), elements=st.floats(0, 1)))
def test_nearest_non_increasing_rows_are_scikit_learns(rows):
    found = non_increasing(rows)
    expected = [isotonic_regression(row, increasing=False) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (np.diff(found, axis=1) <= 0).all()
    # never further from the truth, whatever the grade: its cumulative probabilities are non-increasing
    for truth in np.tril(np.ones((5, 4)), -1):
        assert (((found - truth) ** 2).sum(axis=1) <= ((rows - truth) ** 2).sum(axis=1) + 1e-12).all()


@pytest.mark.parametrize(
    ("fit", "photographs", "fewest"),
    [(fit_temperature, 14, 15), (fit_isotonic_referable, 99, 100), (fit_isotonic_grades, 99, 100)],
)
def test_too_few_photographs_are_refused(fit, photographs, fewest):
    with pytest.raises(UserError, match=rf"{photographs} validation .* {fewest}; raise index\.val_fraction"):
        fit(*drawn(photographs))
    fit(*drawn(fewest))


@pytest.mark.parametrize(
    ("fit", "grades", "message"),
    [
        (fit_temperature, [3], "all 200 validation photographs have grade 3; raise index.val_fraction"),
        (fit_isotonic_referable, [0, 1], "none of the 200 .* grade 2 or higher; .* temperature"),
        (fit_isotonic_referable, [2, 3, 4], "all of the 200 .* grade 2 or higher"),
        (fit_isotonic_grades, [0, 1, 2, 3], "none of the 200 .* grade 4 or higher"),
    ],
)
def test_a_single_class_is_refused(fit, grades, message):
    with pytest.raises(UserError, match=message):
        fit(np.resize(grades, 200), drawn(200)[1])


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ([0.5, 0.5, np.nan, 0, 0], UserError, "row 1: p0 to p4 are .*nan.*1 of 2"),
        ([1.5, -0.5, 0, 0, 0], UserError, "row 1"),
        ([0.5, 0.4, 0, 0, 0], UserError, "row 1"),
        ([0.5, 0.5], ValueError, "inhomogeneous"),
    ],
)
def test_impossible_probabilities_are_refused(row, error, message):
    with pytest.raises(error, match=message):
        Temperature(1.0).apply([[1, 0, 0, 0, 0], row])


def test_grades_and_probabilities_must_match():
    with pytest.raises(ValueError, match=r"need \(N, 5\)"):
        Temperature(1.0).apply([[0.5, 0.5]])
    with pytest.raises(ValueError, match="grades of shape"):
        fit_temperature(np.zeros(19), drawn(20)[1])

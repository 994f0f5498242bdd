from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drgrade.errors import UserError
from drgrade.evaluate import thresholds as module
from drgrade.evaluate.metrics import MIDPOINTS, qwk, to_grades
from drgrade.evaluate.thresholds import fit_thresholds, grades_by

SCORES = st.floats(-1, 5) | st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.5, np.nextafter(2.5, 3), 3.5])
"""Many ties, exact midpoints and two adjacent floats among them."""
SAMPLES = st.integers(0, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=SCORES), hnp.arrays(np.int64, n, elements=st.integers(0, 4))
    )
)


def best_of_all(scores, grades):
    """Highest QWK of all non-decreasing assignments of grades to the different scores, by its definition."""
    values, place = np.unique(scores, return_inverse=True)
    assigned = np.array(list(combinations_with_replacement(range(5), len(values))))[:, place]
    observed = ((assigned - grades) ** 2).mean(axis=1)
    expected = ((assigned[:, :, None] - grades) ** 2).mean(axis=(1, 2))
    perfect = np.ones(len(assigned))  # only if all true and predicted grades are the same
    return (1 - np.divide(observed, expected, out=1 - perfect, where=expected > 0)).max()


@given(SAMPLES)
def test_nothing_is_better_than_the_fitted_thresholds(sample):
    scores, grades = sample
    fitted = fit_thresholds(scores, grades)
    assert np.isfinite(fitted).all()
    assert list(fitted) == sorted(fitted)
    if len(scores):
        assert qwk(grades, grades_by(scores, fitted)) == pytest.approx(best_of_all(scores, grades), abs=1e-12)


@given(SAMPLES)
def test_midpoints_stay_where_nothing_is_better(sample):
    scores, grades = sample
    fitted = fit_thresholds(scores, grades)
    if fitted != MIDPOINTS:
        assert qwk(grades, grades_by(scores, fitted)) > qwk(grades, to_grades(scores))


@pytest.mark.parametrize(
    ("scores", "grades", "expected"),
    [
        ([], [], MIDPOINTS),
        ([1.7, 1.7, 1.7], [0, 2, 4], MIDPOINTS),  # a constant prediction has a QWK of 0, whatever the grade
        ([0.1, 0.9, 2.2, 3.4, 3.6], [0, 1, 2, 3, 4], MIDPOINTS),
        ([1.0, 1.5, 2.0, 2.5, 3.0], [0, 1, 2, 3, 4], (1.25, 1.75, 2.25, 2.75)),
        ([2.0, 3.0], [0, 4], (2.5, 2.5, 2.5, 2.5)),
        # one true grade: all photographs get it, and each threshold stays as close to its midpoint as it can
        ([0.2, 2.7], [2, 2], (0.2, 0.2, np.nextafter(2.7, 3), 3.5)),
        ([-2.0], [4], (-2.0, -2.0, -2.0, -2.0)),
        ([4.5], [0], (np.nextafter(4.5, 5),) * 4),
        # only grades 1 and 2: the outer thresholds lie beyond all scores or at the midpoint
        ([0.25, 0.75, 0.75], [1, 2, 2], (0.25, 0.5, 2.5, 3.5)),
    ],
)
def test_where_thresholds_lie(scores, grades, expected):
    assert fit_thresholds(np.array(scores), np.array(grades, int)) == expected


def test_adjacent_scores_are_told_apart():
    low = 1.2
    high = np.nextafter(low, 2)
    fitted = fit_thresholds([low, high], [0, 4])
    assert grades_by([low, high], fitted).tolist() == [0, 4]


def drawn(photographs):
    """Scores on a compressed scale, as a regression that is shrunk to the mean makes them."""
    rng = np.random.default_rng(1)
    grades = rng.choice(5, photographs, p=[0.73, 0.07, 0.15, 0.03, 0.02])
    return 0.3 + 0.6 * grades + rng.normal(scale=0.5, size=photographs), grades


def test_eyepacs_size():
    """40,000 different scores: better than the midpoints, and no change of thresholds helps."""
    scores, grades = drawn(40_000)
    fitted = np.array(fit_thresholds(scores, grades))
    value = qwk(grades, grades_by(scores, fitted))
    assert value > qwk(grades, to_grades(scores)) + 0.01
    changes = np.random.default_rng(0).normal(scale=[[0.001], [0.01], [0.1]] * 20, size=(60, 4))
    assert all(qwk(grades, grades_by(scores, np.sort(fitted + change))) <= value for change in changes)


def test_a_scale_and_a_shift_of_the_scores_change_nothing_but_the_scale_of_the_thresholds():
    scores, grades = drawn(500)
    one, other = fit_thresholds(scores, grades), fit_thresholds(4 * scores - 2, grades)
    np.testing.assert_allclose(other, 4 * np.array(one) - 2, rtol=1e-12)


def test_sums_beyond_64_bits():
    """Repeated photographs have the same best thresholds; one more is too few to move them.

    It is graded wrongly, so that the ratio of the disagreements cannot be reduced to small numbers.
    """
    scores, grades = drawn(30)
    expected = fit_thresholds(scores, grades)
    assert expected != MIDPOINTS
    many = np.tile(scores, 150_000), np.tile(grades, 150_000)
    assert fit_thresholds(np.append(many[0], scores.min()), np.append(many[1], 4)) == expected


def test_integers_of_any_size_give_the_same(monkeypatch):
    scores, grades = drawn(300)
    expected = fit_thresholds(scores, grades)
    monkeypatch.setattr(module, "INT64_PHOTOGRAPHS", 10)
    assert fit_thresholds(scores, grades) == expected


def test_grades_by_counts_the_thresholds_reached():
    np.testing.assert_array_equal(
        grades_by([-1, 0.9, 1, 1.99, 2, 9], (1, 2, 2, 3.5)), np.array([0, 0, 1, 1, 3, 4], np.int8)
    )
    assert grades_by([1.0], MIDPOINTS).dtype == np.int8
    with pytest.raises(UserError, match="row 1: the score is nan"):
        grades_by([1.0, np.nan], MIDPOINTS)


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=SCORES))
def test_at_the_midpoints_the_grades_are_those_of_to_grades(scores):
    np.testing.assert_array_equal(grades_by(scores, MIDPOINTS), to_grades(scores))


@pytest.mark.parametrize(
    ("scores", "grades", "error", "message"),
    [
        ([1.0, np.nan], [0, 1], UserError, "row 1: the score is nan"),
        ([np.inf], [0], UserError, "row 0: the score is inf"),
        ([1.0], [5], ValueError, "0-4"),
        ([1.0], [0, 1], ValueError, "shape"),
    ],
)
def test_impossible_input_is_refused(scores, grades, error, message):
    with pytest.raises(error, match=message):
        fit_thresholds(scores, grades)

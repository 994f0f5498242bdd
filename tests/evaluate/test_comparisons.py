from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drgrade.evaluate.comparisons import holm, paired_p_value

P_VALUES = hnp.arrays(float, st.integers(1, 6), elements=st.sampled_from([0.001, 0.01, 0.02, 0.04, 0.3, 1.0]))


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (np.full(99, 0.1), 2 / 100),  # never 0
        (np.full(99, -0.1), 2 / 100),
        (np.r_[np.full(95, 0.1), np.full(4, -0.1)], 10 / 100),
        (np.r_[np.full(95, 0.1), np.full(4, 0.0)], 10 / 100),  # no difference speaks for neither
        (np.r_[np.full(95, -0.1), np.full(4, 0.1)], 10 / 100),
        (np.zeros(99), 1.0),
        (np.r_[np.full(50, 0.1), np.full(49, -0.1)], 1.0),
        (np.r_[np.full(99, 0.1), np.nan], 2 / 100),  # an undefined resample is left out
        (np.array([np.nan]), np.nan),
        (np.array([]), np.nan),
    ],
)
def test_p_values_by_hand(difference, expected):
    base = np.zeros(len(difference))
    assert paired_p_value(difference, base) == pytest.approx(expected, nan_ok=True)
    assert paired_p_value(base, difference) == pytest.approx(expected, nan_ok=True)


def test_p_values_of_equal_experiments_are_uniform():
    """Means of 40 patients: a p-value below a level occurs about as often as the level says."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(400):
        difference = rng.normal(size=40)
        draws = difference[rng.integers(40, size=(199, 40))].mean(axis=1)
        values.append(paired_p_value(draws, np.zeros(199)))
    for level in (0.1, 0.5):
        share = np.mean(np.array(values) <= level)
        # four binomial standard deviations, and a bootstrap of 40 patients is a little too narrow
        assert share == pytest.approx(level, abs=0.03 + 4 * np.sqrt(level * (1 - level) / 400))


def test_values_of_different_resamples_are_refused():
    with pytest.raises(ValueError, match="need two"):
        paired_p_value([0.1, 0.2], [0.1])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the 0.06 before it
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.01, np.nan, 0.04], [0.02, np.nan, 0.04]),
        ([0.3], [0.3]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    np.testing.assert_allclose(holm(p_values), expected)


@given(P_VALUES)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis is rejected if every set of hypotheses that it is in is, each by Bonferroni."""
    indices = range(len(p_values))
    sets = [subset for size in indices for subset in combinations(indices, size + 1)]
    expected = [
        max(min(len(s) * p_values[list(s)].min(), 1) for s in sets if index in s) for index in indices
    ]
    np.testing.assert_allclose(holm(p_values), expected)

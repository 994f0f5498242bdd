import numpy as np
import pytest

from drgrade.errors import UserError
from drgrade.evaluate.probabilities import at_least, checked_probabilities, log_probabilities


def test_rounded_probabilities_are_normalised():
    np.testing.assert_allclose(checked_probabilities([[0.5004, 0.5, 0, 0, 0]]).sum(axis=1), 1)


def test_a_photograph_without_probabilities_is_named():
    rows = [[0.2] * 5, [0.5, 0.4, 0, 0, 0]]
    with pytest.raises(UserError, match=r"^im_2: p0 to p4 are \[0.5, 0.4, .*1 of 2"):
        checked_probabilities(rows, ["im_1", "im_2"])
    with pytest.raises(UserError, match=r"^row 1: p0 to p4"):
        checked_probabilities(rows)


def test_cumulative_probabilities_by_hand():
    np.testing.assert_allclose(at_least([[0.1, 0.2, 0.3, 0.25, 0.15]]), [[0.9, 0.7, 0.4, 0.15]])
    assert at_least([[0, 0.1, 0.2, 0.3, 0.4000000001]]).max() == 1


def test_the_logarithm_of_an_impossible_grade_is_finite():
    np.testing.assert_allclose(log_probabilities([[1, 0, 0, 0, 0]]), [[0, *[np.log(1e-12)] * 4]])

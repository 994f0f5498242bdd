import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from drgrade.errors import UserError
from drgrade.evaluate import metrics

PAIRS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.int64, n, elements=st.integers(0, 4))] * 2)
)


def brute_kappa(y, predicted, cost):
    """1 - mean cost of the pairs / mean cost of all pairings of a truth with a prediction."""
    observed = sum(cost(a, b) for a, b in zip(y, predicted, strict=True)) / len(y)
    expected = sum(cost(a, b) for a in y for b in predicted) / len(y) ** 2
    return 1.0 if expected == 0 else 1 - observed / expected


COSTS = {
    "quadratic": lambda a, b: (int(a) - int(b)) ** 2,
    "linear": lambda a, b: abs(int(a) - int(b)),
    "unweighted": lambda a, b: int(a != b),
}


@pytest.mark.parametrize("weights", COSTS)
@given(pair=PAIRS)
def test_kappa_is_the_mean_over_all_pairings(weights, pair):
    value = metrics.kappa(metrics.confusion(*pair), weights)
    assert value == pytest.approx(brute_kappa(*pair, COSTS[weights]), abs=1e-9)


@given(pair=PAIRS)
def test_grade_metrics_match_scikit_learn(pair):
    y, predicted = pair
    values = metrics.summary(metrics.confusion(y, predicted))
    if len(set(y) | set(predicted)) > 1:  # scikit-learn leaves a kappa of one grade undefined
        for name, weights in (("qwk", "quadratic"), ("linear_kappa", "linear"), ("unweighted_kappa", None)):
            expected = sk.cohen_kappa_score(y, predicted, labels=range(5), weights=weights)
            assert values[name] == pytest.approx(expected, abs=1e-9)
    assert metrics.qwk(y, predicted) == values["qwk"]
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted), abs=1e-9)
    assert values["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"), abs=1e-9)
    assert values["mae"] == pytest.approx(np.mean(np.abs(y - predicted)), abs=1e-9)
    present = sorted(set(y))
    recalls = sk.recall_score(y, predicted, labels=present, average=None, zero_division=np.nan)
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-9)
    np.testing.assert_allclose(metrics.recall(metrics.confusion(y, predicted))[present], recalls, atol=1e-9)


@given(pair=PAIRS, lowest=st.integers(1, 4))
def test_sensitivity_and_specificity_are_recalls_of_two_classes(pair, lowest):
    y, predicted = (values >= lowest for values in pair)
    matrix = metrics.confusion(*pair)
    for value, label in (
        (metrics.sensitivity(matrix, lowest), True),
        (metrics.specificity(matrix, lowest), False),
    ):
        expected = sk.recall_score(y, predicted, pos_label=label, zero_division=np.nan)
        assert float(value) == pytest.approx(expected, nan_ok=True)


def test_referable_means_grade_2_or_higher():
    values = metrics.summary(metrics.confusion([0, 1, 2, 3, 4], [0, 2, 1, 2, 4]))
    assert values["referable_sensitivity"] == pytest.approx(2 / 3)
    assert values["referable_specificity"] == 0.5


def test_confusion_has_the_truth_in_rows():
    assert metrics.confusion([0, 0, 4], [0, 3, 4])[0, 3] == 1
    assert metrics.confusion([0, 0, 4], [0, 3, 4]).sum() == 3


@pytest.mark.parametrize(
    ("y", "predicted", "expected"),
    [
        ([2, 2, 2], [2, 2, 2], 1.0),  # one grade, nothing disagrees
        ([2, 2, 2], [3, 3, 3], 0.0),  # as bad as chance, which is also always wrong
        ([0, 1, 2], [1, 1, 1], 0.0),  # a constant prediction
        ([0, 4], [4, 0], -1.0),
        ([], [], math.nan),
    ],
)
def test_degenerate_qwk(y, predicted, expected):
    assert metrics.qwk(np.array(y, int), np.array(predicted, int)) == pytest.approx(expected, nan_ok=True)


def test_recall_of_an_absent_grade_is_nan():
    values = metrics.recall(metrics.confusion([0, 0, 1], [0, 1, 4]))
    np.testing.assert_array_equal(values, [0.5, 0, math.nan, math.nan, math.nan])


def test_degenerate_input_raises_no_warning(recwarn):
    metrics.summary(metrics.confusion([], []))
    metrics.summary(metrics.confusion([3], [3]))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("y", "predicted"), [([0, 5], [0, 1]), ([0, -1], [0, 1]), ([0.5], [0]), ([0], [0, 1])]
)
def test_impossible_grades_are_refused(y, predicted):
    with pytest.raises(ValueError, match="grades"):
        metrics.qwk(y, predicted)


def test_midpoints_as_published():
    # spec lesion-contrastive 9.7: .49 -> 0, .5 -> 1, below -0.5 -> 0, above 3.5 -> 4
    score = [-3, -0.6, 0.49, 0.5, 1.49, 1.5, 2.5, 3.49, 3.5, 9]
    np.testing.assert_array_equal(metrics.to_grades(score), [0, 0, 0, 1, 1, 2, 3, 3, 4, 4])


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-10, 10)))
def test_grade_is_the_largest_whose_threshold_is_reached(score):
    thresholds = (-0.5, 0.5, 1.5, 2.5, 3.5)
    expected = [max((i for i, low in enumerate(thresholds) if value >= low), default=0) for value in score]
    np.testing.assert_array_equal(metrics.to_grades(score), expected)


def test_score_that_is_not_a_number_names_the_photograph():
    with pytest.raises(UserError, match=r"^IDRiD_007: the score is nan.*1 of 2"):
        metrics.to_grades([1.0, math.nan], ["IDRiD_001", "IDRiD_007"])
    with pytest.raises(UserError, match="row 0"):
        metrics.to_grades([math.inf])

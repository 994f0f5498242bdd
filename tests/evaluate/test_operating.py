from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drgrade.errors import UserError
from drgrade.evaluate.detection import rank
from drgrade.evaluate.operating import POINTS, OperatingPoint, call, choose

PROBABILITIES = st.sampled_from([0.0, 0.2, 0.2000000000000001, 0.4, 0.5, 0.7, 1.0]) | st.floats(0, 1)
SAMPLES = (
    st.integers(2, 15)
    .flatmap(lambda n: st.tuples(hnp.arrays(bool, n), hnp.arrays(float, n, elements=PROBABILITIES)))
    .filter(lambda sample: sample[0].any() and not sample[0].all())
)


def test_names_of_the_points():
    assert POINTS == ("specificity_87", "specificity_95", "sensitivity_87", "sensitivity_95", "youden")


@given(SAMPLES)
def test_counts_are_those_of_the_calls(sample):
    positive, probability = sample
    points = choose(positive, probability)
    assert tuple(points) == POINTS
    for name, point in points.items():
        called = call(probability, point)
        assert point == OperatingPoint(
            name=name,
            threshold=point.threshold,
            true_positives=(called & positive).sum(),
            false_negatives=(~called & positive).sum(),
            true_negatives=(~called & ~positive).sum(),
            false_positives=(called & ~positive).sum(),
        )


@given(SAMPLES)
def test_no_threshold_is_better(sample):
    positive, probability = sample
    points = choose(positive, probability)
    tried = [probability >= threshold for threshold in (*probability, np.inf)]
    pairs = [(called[positive].mean(), (~called[~positive]).mean()) for called in tried]
    for target in (0.87, 0.95):
        best = max(pair for pair in pairs if pair[1] >= target)
        point = points[f"specificity_{target * 100:.0f}"]
        assert (point.sensitivity, point.specificity) == best
        best = max(pair[::-1] for pair in pairs if pair[0] >= target)
        point = points[f"sensitivity_{target * 100:.0f}"]
        assert (point.specificity, point.sensitivity) == best
    best = max(sum(pair) for pair in pairs)
    assert points["youden"].sensitivity + points["youden"].specificity == pytest.approx(best, abs=1e-12)


def test_a_specificity_or_sensitivity_exactly_at_the_target_counts():
    """Between 0.3 and 0.2, 87 of 100 are told apart from the others."""
    high, low = np.full(13, 0.3), np.full(87, 0.2)
    negative, positive = np.zeros(100, bool), np.ones(101, bool)
    point = choose(np.r_[negative, positive], np.r_[high, low, np.full(101, 0.3)])["specificity_87"]
    assert (point.sensitivity, point.specificity) == (1, 0.87)
    point = choose(np.r_[~negative, ~positive], np.r_[1 - high, 1 - low, np.full(101, 0.75)])[
        "sensitivity_87"
    ]
    assert (point.sensitivity, point.specificity) == (0.87, 1)


@given(SAMPLES)
def test_points_agree_with_the_metrics_of_detection(sample):
    points, values = choose(*sample), rank(*sample).values()
    for percent in (87, 95):
        at_specificity, at_sensitivity = points[f"specificity_{percent}"], points[f"sensitivity_{percent}"]
        assert values[f"sensitivity_at_specificity_{percent}"] == at_specificity.sensitivity
        assert values[f"specificity_at_sensitivity_{percent}"] == at_sensitivity.specificity


@pytest.mark.parametrize(
    ("positive", "probability", "thresholds"),
    [
        # separable: every point lies in the middle of the gap
        ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], [0.4, 0.4, 0.4, 0.4, 0.4]),
        # the lowest positive costs a third of the negatives; for Youden's index that is a tie
        ([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.7, 0.9], [0.65, 0.65, 0.35, 0.35, 0.35]),
        # constant probabilities: call none or all, as close to 0.5 as can be; a tie is resolved to all
        ([0, 1], [0.3, 0.3], [0.5, 0.5, 0.3, 0.3, 0.3]),
        ([0, 1], [0.8, 0.8], [np.nextafter(0.8, 1)] * 2 + [0.5] * 3),
        ([0, 1], [1.0, 1.0], [np.nextafter(1, 2)] * 2 + [0.5] * 3),
    ],
)
def test_where_thresholds_lie(positive, probability, thresholds):
    points = choose(np.array(positive, bool), probability)
    assert [point.threshold for point in points.values()] == pytest.approx(thresholds, rel=1e-15)


@pytest.mark.parametrize("low", [0.3, np.nextafter(0.3, 1)])  # their middles are rounded up and down
def test_adjacent_probabilities_are_told_apart(low):
    high = np.nextafter(low, 1)
    for point in choose([False, True], [low, high]).values():
        assert call([low, high], point).tolist() == [False, True]


@pytest.mark.parametrize(
    ("positive", "count"), [([True, True], "2 of 2"), ([False], "0 of 1"), ([], "0 of 0")]
)
def test_one_kind_of_photographs_is_refused(positive, count):
    with pytest.raises(UserError, match=rf"{count} validation photographs.*index\.val_fraction"):
        choose(positive, np.full(len(positive), 0.5))


def test_a_probability_that_is_not_a_number_is_refused():
    """It must not be called healthy."""
    point = choose([False, True], [0.2, 0.8])["youden"]
    with pytest.raises(UserError, match="row 1: the probability of referable DR is nan"):
        call([0.9, np.nan], point)
    with pytest.raises(UserError, match="row 0"):
        choose([False, True], [np.inf, 0.8])
    with pytest.raises(ValueError, match="need two"):
        choose([False, True], [0.8])
    assert call([], replace(point, threshold=0.1)).shape == (0,)

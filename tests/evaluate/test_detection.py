import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from drgrade.bootstrap import resample_weights
from drgrade.evaluate.detection import TARGETS, macro_auroc, rank, rank_grades
from drgrade.evaluate.intervals import bootstrap, resampled
from drgrade.evaluate.metrics import accuracy

SCORES = st.sampled_from([-1.0, 0.0, 0.1, 0.2, 0.30000000000000004, 0.3, 1.0, 2.5])
"""Few, so that ties are common; two of them are adjacent floats."""
WEIGHTED = st.integers(0, 25).flatmap(
    lambda n: st.tuples(
        hnp.arrays(bool, n),
        hnp.arrays(float, n, elements=SCORES),
        hnp.arrays(int, n, elements=st.integers(0, 3)),
    )
)
AT = {
    f"{one}_at_{other}_{percent}": (one, other, target)
    for target, percent in zip(TARGETS, (87, 95), strict=True)
    for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
}


def shares(positive, called):
    return {"sensitivity": called[positive].mean(), "specificity": (~called[~positive]).mean()}


def brute(positive, score, one, other, target):
    """Highest value of one share over all thresholds at which the other one is at least the target."""
    tried = [shares(positive, score >= threshold) for threshold in (*score, np.inf)]
    return max(values[one] for values in tried if values[other] >= target)


@given(WEIGHTED)
def test_each_metric_is_that_of_the_repeated_photographs(sample):
    positive, score, weight = sample
    values = rank(positive, score).values(weight[None])
    positive, score = positive.repeat(weight), score.repeat(weight)
    both = positive.any() and not positive.all()
    expected = {
        "auroc": roc_auc_score(positive, score) if both else np.nan,
        "auprc": average_precision_score(positive, score) if positive.any() else np.nan,
        **{name: brute(positive, score, *rule) if both else np.nan for name, rule in AT.items()},
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name].shape == (1,)
        assert values[name][0] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_a_specificity_exactly_at_the_target_counts():
    """87 of 100 negatives score below the first positive, and one positive is among the others."""
    score = np.r_[np.full(87, 0.1), np.full(13, 0.3), 0.3, 0.2]
    positive = np.arange(102) >= 100
    values = rank(positive, score).values()
    assert values["sensitivity_at_specificity_87"] == 1.0  # at 0.2 or 0.3, with 13 false alarms
    assert values["sensitivity_at_specificity_95"] == 0.0  # only above all scores
    assert values["specificity_at_sensitivity_87"] == 0.87
    score[0] = 0.25  # a 14th false alarm at 0.2
    values = rank(positive, score).values()
    assert values["sensitivity_at_specificity_87"] == 0.5


def test_successive_scores_of_negatives_share_a_step():
    ranking = rank([True, False, False, True, True, False], [0.9, 0.8, 0.7, 0.6, 0.5, 0.5])
    positives, negatives = ranking.counts()
    assert positives.ravel().tolist() == [1, 0, 1, 1]
    assert negatives.ravel().tolist() == [0, 2, 0, 1]


def test_patients_are_weighted_in_the_order_of_their_names():
    positive = np.array([True, False, True, False, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.75])
    patients = np.array(["b", "a", "a", "b", "c"])
    ranking = rank(positive, score, patients)
    weights = np.array([[2, 0, 1], [1, 1, 1], [0, 3, 0]])  # of a, b, c
    expected = [
        roc_auc_score(positive[rows], score[rows])
        for rows in ([1, 2, 1, 2, 4], [0, 1, 2, 3, 4], [0, 3, 0, 3, 0, 3])
    ]
    np.testing.assert_allclose(ranking.values(weights)["auroc"], expected)
    np.testing.assert_allclose(ranking.auroc(weights), expected)
    with pytest.raises(ValueError, match=r"need \(R, 3\)"):
        ranking.values(np.ones((2, 5)))


@pytest.mark.parametrize("positive", [[], [True, True], [False, False]])
def test_degenerate_samples_are_nan_without_a_warning(positive, recwarn):
    values = rank(positive, np.linspace(0, 1, len(positive))).values()
    defined = {"auprc"} if any(positive) else set()
    assert {name for name, value in values.items() if not np.isnan(value)} == defined
    assert not recwarn.list


@pytest.mark.parametrize("score", [[0.1, np.nan], [0.1, np.inf], [0.1], [[0.1, 0.2]]])
def test_impossible_scores_are_refused(score):
    with pytest.raises(ValueError, match=r"row 1: the score|need three \(N,\)"):
        rank([True, False], score)


def drawn(photographs, seed=0):
    rng = np.random.default_rng(seed)
    grades = rng.choice(5, photographs, p=[0.5, 0.1, 0.2, 0.1, 0.1])
    logits = 2 * np.eye(5)[grades] + rng.normal(size=(photographs, 5))
    return grades, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_macro_auroc_is_the_mean_of_one_grade_against_all_others():
    grades, probabilities = drawn(200)
    value = macro_auroc(rank_grades(grades, probabilities))
    expected = roc_auc_score(grades, probabilities, multi_class="ovr", average="macro")
    assert value == pytest.approx([expected], abs=1e-12)


def test_macro_auroc_leaves_out_grades_that_a_resample_lacks():
    grades = np.array([0, 0, 1, 1, 4])
    probabilities = drawn(5)[1]
    rankings = rank_grades(grades, probabilities)
    weights = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    expected = np.mean([roc_auc_score(grades[:4] == grade, probabilities[:4, grade]) for grade in (0, 1)])
    np.testing.assert_allclose(macro_auroc(rankings, weights), [expected, np.nan])


def test_resamples_are_those_of_the_confusion_matrices():
    """The accuracy of calls at 0.5, once by `bootstrap`, once by weights of `resampled`."""
    grades, _ = drawn(60)
    patients = np.repeat([f"p{patient:02d}" for patient in range(30)], 2)
    right = np.random.default_rng(1).random(60) < 0.7
    predicted = np.where(right, grades, (grades + 1) % 5)

    def values(weights):
        return {"accuracy": weights @ right.reshape(30, 2).sum(axis=1) / (2 * weights.sum(axis=1))}

    found = resampled(values, units=30, resamples=120, seed=3)["accuracy"]
    np.testing.assert_allclose(found, bootstrap(grades, predicted[None], patients, 120, 3, accuracy))


def test_eyepacs_size():
    """The values of 100 resamples of 40,000 photographs; some are compared with scikit-learn's."""
    rng = np.random.default_rng(2)
    positive = rng.random(40_000) < 0.2
    score = np.round(positive + rng.normal(size=40_000), 3)
    patients = np.arange(40_000) // 2
    values = resampled(rank(positive, score, patients).values, 20_000, resamples=100, seed=1)
    weights = np.concatenate(list(resample_weights(20_000, 100, 1)))[[0, 99]]
    for place, weight in zip((0, 99), weights, strict=True):
        expected = roc_auc_score(positive, score, sample_weight=weight[patients])
        assert values["auroc"][place] == pytest.approx(expected, abs=1e-9)
        expected = average_precision_score(positive, score, sample_weight=weight[patients])
        assert values["auprc"][place] == pytest.approx(expected, abs=1e-9)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drgrade.errors import UserError
from drgrade.evaluate.conformal import ConformalSets, coverage, fit_sets, risk_coverage, scores_of

# multiples of 1/16, so that sums are exact and ties are common
PROBABILITIES = (
    hnp.arrays(int, (4, 5), elements=st.integers(0, 5))
    .map(lambda parts: np.c_[parts[:, :4], 16 - parts[:, :4].sum(axis=1)] / 16)
    .filter(lambda rows: (rows >= 0).all())
)


def drawn(photographs, seed, patients=None):
    """Grades and overconfident probabilities; photographs of one patient are alike."""
    rng = np.random.default_rng(seed)
    patient = np.arange(photographs) if patients is None else np.asarray(patients)
    base = rng.normal(scale=2, size=(patient.max() + 1, 5))[patient] if photographs else np.empty((0, 5))
    logits = base + rng.normal(scale=0.1 if patients is not None else 1, size=(photographs, 5))
    grades = (base + rng.gumbel(size=(patient.max(initial=-1) + 1, 5))[patient]).argmax(axis=1)
    odds = np.exp(2 * logits)
    return grades, odds / odds.sum(axis=1, keepdims=True)


def greedy_set(probabilities, level):
    """Lu et al. 2022, Algorithm 1: grow the run of grades while its probability is below the level."""
    low = high = int(np.argmax(probabilities))
    while probabilities[low : high + 1].sum() < level:
        below = probabilities[low - 1] if low > 0 else -1
        above = probabilities[high + 1] if high < 4 else -1
        if max(below, above) < 0:
            break
        low, high = (low, high + 1) if above >= below else (low - 1, high)
    return [low <= grade <= high for grade in range(5)]


@given(PROBABILITIES, st.integers(0, 16))
def test_ordinal_scores_give_the_sets_of_the_algorithm(probabilities, sixteenths):
    """A grade with a score up to q is in the run that grows while its probability is at most q."""
    sets = scores_of(probabilities, "ordinal") <= sixteenths / 16
    level = (sixteenths + 0.5) / 16
    np.testing.assert_array_equal(sets, [greedy_set(row, level) for row in probabilities])


def test_scores_by_hand():
    probabilities = [[0.1, 0.3, 0.4, 0.15, 0.05]]
    np.testing.assert_allclose(scores_of(probabilities, "ordinal"), [[0.85, 0.4, 0, 0.7, 0.95]])
    np.testing.assert_allclose(scores_of(probabilities, "lac"), [[0.9, 0.7, 0.6, 0.85, 0.95]])
    with pytest.raises(UserError, match="'aps' of conformal sets is unknown"):
        scores_of(probabilities, "aps")


@pytest.mark.parametrize(
    ("photographs", "alpha", "rank"),
    [
        (9, 0.1, 9),  # ceil(10 x 0.9)
        (8, 0.1, None),  # ceil(9 x 0.9) = 9 of 8: all grades
        (10, 0.1, 10),
        (19, 0.1, 18),
        (99, 0.05, 95),
        (100, 0.05, 96),
        (19, 0.05, 19),
        (18, 0.05, None),
        (9, 0.3, 7),
        (99, 0.34, 66),  # 100 x (1 - 0.34) is a little below 66 in floating point
        (99, 0.44, 56),  # 100 x (1 - 0.44) is a little above 56
        (0, 0.1, None),
    ],
)
def test_the_quantile_is_the_ceiling_of_n_plus_1_times_1_minus_alpha(photographs, alpha, rank):
    grades, probabilities = drawn(photographs, seed=1)
    fitted = fit_sets(grades, probabilities, alpha, "lac")
    own = np.sort(1 - probabilities[np.arange(photographs), grades])
    assert fitted.patients == photographs
    if rank is None:
        assert fitted.quantile is None
        assert fitted.sets(probabilities).all()
        assert fitted.sets([[1, 0, 0, 0, 0]]).all()
    else:
        assert fitted.quantile == pytest.approx(own[rank - 1], abs=1e-12)


@given(st.integers(0, 1000), st.sampled_from(["ordinal", "lac"]), st.sampled_from([0.05, 0.1, 0.25]))
@settings(derandomize=True, max_examples=20)
def test_marginal_coverage_is_at_least_the_stated_one(seed, score, alpha):
    """100 times, 49 photographs to fit on and 50 new ones of the same kind."""
    grades, probabilities = drawn(100 * 99, seed)
    shares = []
    for start in range(0, len(grades), 99):
        old, new = slice(start, start + 49), slice(start + 49, start + 99)
        fitted = fit_sets(grades[old], probabilities[old], alpha, score)
        shares.append(coverage(grades[new], fitted.sets(probabilities[new]))["coverage"])
    # Four standard errors of the mean of 100 independent shares.
    error = 4 * np.std(shares, ddof=1) / 10
    assert np.mean(shares) >= 1 - alpha - error
    if score == "lac":  # its scores are continuous, so that coverage is at most 1 - alpha + 1 / (n + 1)
        assert np.mean(shares) <= 1 - alpha + 1 / 50 + error


def test_coverage_holds_for_patients_with_several_photographs():
    """Photographs of a patient are nearly copies, and hard patients have more of them."""
    shares = []
    for seed in range(150):
        patient = np.repeat(np.arange(49), np.random.default_rng(seed).integers(1, 9, 49))
        grades, probabilities = drawn(len(patient), seed, patient)
        new_patient = np.repeat(np.arange(50), 2)
        new, new_probabilities = drawn(100, 1000 + seed, new_patient)
        fitted = fit_sets(grades, probabilities, 0.2, "lac", patients=patient)
        assert fitted.patients == 49
        shares.append(coverage(new, fitted.sets(new_probabilities))["coverage"])
    assert np.mean(shares) >= 0.8 - 4 * np.std(shares, ddof=1) / np.sqrt(150)


def test_a_patient_counts_once_however_many_photographs():
    """Nine patients: eight with score 0.1, one with 50 photographs of score 0.9."""
    probabilities = np.array([[0.9, 0.1, 0, 0, 0]] * 8 + [[0.1, 0.9, 0, 0, 0]] * 50)
    patients = np.r_[np.arange(8), np.full(50, 8)]
    fitted = fit_sets(np.zeros(58, int), probabilities, 0.2, "lac", patients)
    assert fitted.quantile == pytest.approx(0.1)  # the 8th of 9 patients, ceil(10 x 0.8)
    fitted = fit_sets(np.zeros(58, int), probabilities, 0.15, "lac", patients)
    assert fitted.quantile == pytest.approx(0.9)  # 8.5 of 9: half of the last one's photographs
    assert fit_sets(np.zeros(58, int), probabilities, 0.2, "lac").quantile == pytest.approx(0.9)


@given(PROBABILITIES, st.floats(0, 1))
def test_ordinal_sets_are_runs_with_the_most_probable_grade(probabilities, quantile):
    sets = ConformalSets("ordinal", 0.1, quantile, 50).sets(probabilities)
    assert sets[np.arange(len(sets)), probabilities.argmax(axis=1)].all()
    changes = np.abs(np.diff(sets.astype(int), prepend=0, append=0, axis=1)).sum(axis=1)
    assert (changes == 2).all()


@pytest.mark.parametrize("photographs", [3, 50])
def test_with_too_few_patients_every_set_holds_all_grades(photographs):
    fitted = fit_sets(*drawn(photographs, seed=4), alpha=0.1)
    assert (fitted.quantile is None) == (photographs == 3)
    assert fitted.sets(drawn(20, seed=5)[1]).all() == (photographs == 3)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan])
def test_impossible_coverage_is_refused(alpha):
    with pytest.raises(UserError, match="needs a number between 0 and 1"):
        fit_sets(*drawn(50, seed=1), alpha=alpha)


def test_lengths_must_match():
    grades, probabilities = drawn(50, seed=1)
    with pytest.raises(ValueError, match="49 grades"):
        fit_sets(grades[1:], probabilities, 0.1)


def test_coverage_by_hand():
    sets = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], bool)
    found = coverage([0, 0, 1, 4], sets)
    assert (found["coverage"], found["mean_size"]) == (0.5, 1.5)
    assert (found["single"], found["empty"]) == (0.25, 0.25)
    assert found["grades"][0] == {"grade": 0, "n": 2, "coverage": 0.5, "mean_size": 1.5}
    assert found["grades"][4] == {"grade": 4, "n": 1, "coverage": 1.0, "mean_size": 3.0}
    assert found["grades"][2]["n"] == 0
    assert math.isnan(found["grades"][2]["coverage"])


def test_no_photographs_give_nan_without_a_warning(recwarn):
    found = coverage(np.empty(0, int), np.empty((0, 5), bool))
    assert math.isnan(found["coverage"])
    curve = risk_coverage([], [])
    assert math.isnan(curve.area)
    assert math.isnan(curve.risk_at(0.9))
    assert not recwarn.list


def test_risk_coverage_by_hand():
    curve = risk_coverage([0.9, 0.5, 0.8, 0.6, 0.7], [0, 1, 0, 0, 1])
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 4, 2 / 5])
    assert curve.area == pytest.approx((1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert curve.risk_at(1) == pytest.approx(2 / 5)
    assert curve.risk_at(0.8) == pytest.approx(1 / 4)  # exactly four photographs
    assert curve.risk_at(0.81) == pytest.approx(2 / 5)  # at least this share
    assert curve.risk_at(0.01) == 0
    hundred = risk_coverage(-np.arange(100), np.arange(100) == 55)
    assert hundred.risk_at(0.55) == 0  # 0.55 x 100 is a little above 55 in floating point
    for share in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="needs a number above 0"):
            curve.risk_at(share)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            hnp.arrays(int, n, elements=st.integers(-5, -1)), hnp.arrays(bool, n), st.permutations(range(n))
        )
    )
)
def test_risk_of_ties_is_the_mean_over_their_orders(sample):
    size, wrong, order = sample
    curve = risk_coverage(size, wrong)
    shuffled = risk_coverage(size[order], wrong[order])
    np.testing.assert_allclose(shuffled.risk, curve.risk)
    rng = np.random.default_rng(0)
    orders = [np.lexsort((rng.random(len(size)), -size)) for _ in range(400)]
    risks = [wrong[rows].cumsum() / np.arange(1, len(rows) + 1) for rows in orders]
    error = 5 * np.std(risks, axis=0) / 20 + 1e-12
    assert (np.abs(np.mean(risks, axis=0) - curve.risk) <= error).all()


@pytest.mark.parametrize(("confidence", "loss"), [([0.1, math.nan], [0, 1]), ([0.1], [0, 1])])
def test_impossible_confidences_are_refused(confidence, loss):
    with pytest.raises(ValueError, match=r"row 1: the confidence|need two"):
        risk_coverage(confidence, loss)

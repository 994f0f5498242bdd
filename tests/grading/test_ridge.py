"""Ridge regression on frozen features, against sklearn's with patients left out one by one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV

from drgrade.errors import UserError
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading import features as feature_module
from drgrade.grading.base import Photographs
from drgrade.grading.ridge import Params, Regression, around, fit_ridge
from drgrade.grading.ridge import Ridge as Grader
from drgrade.params import Crop


def toy(rows: int = 30, columns: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different sizes, one of them constant, and grades that depend on a few of them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)) * np.geomspace(0.01, 100, columns) + 5
    features[:, 3] = 7
    signal = features[:, 0] * 60 + features[:, -1] / 100 + rng.normal(size=rows)
    return features, np.clip(np.round(signal - signal.mean() + 2), 0, 4)


def standardised(features: np.ndarray) -> np.ndarray:
    deviation = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviation == 0, 1, deviation)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_left_out_scores_are_those_of_regressions_without_the_patient(size):
    features, grades = toy()
    patients = np.arange(30) // size
    found = fit_ridge(features, grades, patients, [20.0])
    z = standardised(features)
    for patient in range(30 // size):
        rest = patients != patient
        wanted = Ridge(20.0).fit(z[rest], grades[rest]).predict(z[~rest])
        np.testing.assert_allclose(found.left_out[~rest], wanted, rtol=1e-8)
    whole = Ridge(20.0).fit(z, grades)
    np.testing.assert_allclose(features @ found.weights + found.constant, whole.predict(z), rtol=1e-8)


def test_photographs_without_a_patient_are_left_out_one_by_one():
    features, grades = toy()
    alone = fit_ridge(features, grades, np.arange(30), [5.0])
    unknown = fit_ridge(features, grades, [None] * 30, [5.0])
    np.testing.assert_array_equal(alone.left_out, unknown.left_out)
    together = fit_ridge(features, grades, ["same", "same", *[None] * 28], [5.0])
    assert np.abs(together.left_out[:2] - alone.left_out[:2]).min() > 1e-6
    np.testing.assert_allclose(together.left_out[2:], alone.left_out[2:], rtol=1e-12)


def test_the_penalty_is_that_of_sklearns_leave_one_out():
    features, grades = toy(columns=12)
    alphas = [0.1, 1.0, 10.0, 100.0, 1000.0]
    found = fit_ridge(features, grades, np.arange(30), alphas)
    wanted = RidgeCV(alphas).fit(standardised(features), grades)
    assert found.alpha == wanted.alpha_
    assert found.alpha not in (0.1, 1000.0)


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_no_other_line_agrees_better_with_the_grades(seed, slope, shift):
    """Lin's concordance correlation is largest where the scores have the grades' mean and deviation."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, 40).astype(float)
    left_out = 0.3 * grades + rng.normal(size=40) * 0.4 + 1
    if np.corrcoef(left_out, grades)[0, 1] <= 0 or grades.std() == 0:
        return
    stretched = Regression(np.ones(2), 1.0, left_out, 1.0).stretched(grades).left_out

    def concordance(scores: np.ndarray) -> float:
        apart = (scores.mean() - grades.mean()) ** 2
        return 2 * np.cov(scores, grades, bias=True)[0, 1] / (scores.var() + grades.var() + apart)

    assert stretched.mean() == pytest.approx(grades.mean())
    assert stretched.std() == pytest.approx(grades.std())
    assert concordance(stretched) >= concordance(slope * left_out + shift) - 1e-12


def test_new_scores_are_stretched_like_the_left_out_ones():
    features, grades = toy()
    plain = fit_ridge(features, grades, np.arange(30), [100.0])
    stretched = plain.stretched(grades)
    slope, shift = np.polyfit(plain.left_out, stretched.left_out, 1)
    scores = [features @ one.weights + one.constant for one in (plain, stretched)]
    assert slope > 1  # left-out scores are shrunk
    np.testing.assert_allclose(scores[1], slope * scores[0] + shift, rtol=1e-9)
    same = fit_ridge(features, np.full(30, 2.0), np.arange(30), [1.0]).stretched(np.full(30, 2.0))
    np.testing.assert_allclose(features @ same.weights + same.constant, 2.0)  # no spread to stretch


def test_probabilities_are_those_of_a_normal_distribution_around_the_score():
    drawn = np.random.default_rng(0).normal(1.2, 0.8, 200_000)
    counted = np.bincount(np.clip(np.floor(drawn + 0.5), 0, 4).astype(int), minlength=5) / len(drawn)
    np.testing.assert_allclose(around(np.array([1.2]), 0.8)[0], counted, atol=0.004)
    np.testing.assert_array_equal(around(np.array([3.2, -9]), 0.0), [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.floats(0, 5))
def test_probabilities_sum_to_one(scores, spread):
    found = around(np.array(scores), spread)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.fixture
def grader(monkeypatch, fitted):
    """Fits the grader on given features; returns it, what it measured, and its scores."""

    def fit(stretch: bool, val: int = 10):
        features, grades = toy(rows=40, columns=64)
        points = features.astype(np.float32)
        monkeypatch.setattr(feature_module, "features", lambda frozen, images, rows: points[rows])
        table = pd.DataFrame({"grade": grades.astype(int), "row": range(40), "patient_id": None})
        params = Params(encoder="test_efficientnet", input_size=32, pooling=["mean"], stretch=stretch)
        made = Grader(params, Crop())
        measured = fitted(made, table.iloc[:30], table.iloc[30 : 30 + val])
        return made, measured, made.predict(Photographs(np.empty(0), table)).score, grades

    return fit


def test_it_measures_left_out_patients_and_validation(grader):
    made, measured, scores, grades = grader(stretch=True)
    assert set(measured) == {"alpha", "left_out_qwk", "spread", "val_qwk"}
    assert measured["val_qwk"] == pytest.approx(qwk(grades[30:].astype(int), to_grades(scores[30:])))
    assert made.facts() == measured
    points = toy(rows=40, columns=64)[0][:30].astype(np.float32)
    alone = fit_ridge(points, grades[:30], np.arange(30), made.params.alphas).stretched(grades[:30])
    assert measured["spread"] == pytest.approx(np.sqrt(np.mean((alone.left_out - grades[:30]) ** 2)))
    assert measured["left_out_qwk"] == qwk(grades[:30].astype(int), to_grades(alone.left_out))
    assert "val_qwk" not in grader(stretch=True, val=0)[1]


def test_without_stretch_scores_are_closer_to_the_mean(grader):
    (_, _, stretched, _), (_, _, plain, _) = grader(stretch=True), grader(stretch=False)
    assert plain.std() < stretched.std()
    assert np.corrcoef(plain, stretched)[0, 1] > 0.95  # not 1: scores end at 0 and 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": [17]}, r"layers: \[17\]"),
        ({"pooling": ["token"]}, "EfficientNet has no class token"),
        ({"encoder": "test_vit", "layers": [-9]}, r"layers: \[-9\]"),
    ],
)
def test_layers_and_poolings_that_the_encoder_lacks_are_refused(fitted, keys, message):
    params = Params.model_validate({"encoder": "test_efficientnet", "input_size": 32} | keys)
    with pytest.raises(UserError, match=message):
        fitted(Grader(params, Crop()), pd.DataFrame(), pd.DataFrame())

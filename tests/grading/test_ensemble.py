"""Combinations of scores, against brute force and closed forms."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.grading.conftest import Recorded

from drgrade.errors import UserError
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Grader, Job, Output, Photographs, Start, interpolated
from drgrade.grading.ensemble import ALPHAS, Ensemble, Params, ridge, simplex_weights
from drgrade.grading.models import load_model
from drgrade.params import Crop, Experiment

GRADES = np.arange(20) % 5


class Fixed(Grader):
    """Predicts a given score for each row."""

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__(Experiment(), Crop())
        self.scores = np.clip(scores, 0, 4)

    def fit(self, job: Job) -> None:
        raise AssertionError("members are trained already")

    def predict(self, photographs: Photographs) -> Output:
        return Output(interpolated(self.scores[photographs.rows]))


def scores() -> dict[str, np.ndarray]:
    """A good member, one with more noise, and one that is wrong."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 20))
    return {"good": GRADES + 0.4 * noise[0], "noisy": GRADES + 0.8 * noise[1], "wrong": 4.0 - GRADES}


def photographs(rows: range) -> Photographs:
    table = pd.DataFrame({"image_id": [f"i{n}" for n in rows], "grade": GRADES[list(rows)], "row": rows})
    members = {name: Fixed(found) for name, found in reversed(scores().items())}
    return Photographs(None, table, members=members)


def fitted(how: str = "mean", members=("good", "noisy", "wrong"), val=range(20)) -> tuple[Ensemble, dict]:
    grader, run = Ensemble(Params(members=list(members), how=how), Crop()), Recorded()
    grader.fit(Job(photographs(range(0)), photographs(val), Start("random"), 0, "t", "", run))
    return grader, run.values


def clipped(*names: str) -> np.ndarray:
    return np.column_stack([np.clip(scores()[name], 0, 4) for name in names])


def test_the_mean_of_the_members():
    grader, recorded = fitted(members=["good", "wrong"])
    shown = photographs(range(5, 12))
    output = grader.predict(shown)
    expected = clipped("good", "wrong").mean(axis=1)[5:12]
    np.testing.assert_allclose(output.score, expected)
    mixed = [interpolated(one)[5:12] for one in clipped("good", "wrong").T]
    np.testing.assert_allclose(output.probabilities, np.mean(mixed, axis=0))
    assert output.features is None
    value = qwk(GRADES, to_grades(clipped("good", "wrong").mean(axis=1)))
    assert recorded == {
        "weight_good": 0.5,
        "weight_wrong": 0.5,
        "constant": 0,
        "val_qwk": pytest.approx(value),
    }


def test_a_single_member_is_itself():
    grader, _ = fitted("weighted", ["noisy"])
    np.testing.assert_allclose(grader.predict(photographs(range(20))).score, clipped("noisy")[:, 0])


def test_weights_belong_to_their_members():
    """The best convex combination leaves out the wrong member and prefers the good one."""
    _, recorded = fitted("weighted")
    assert recorded["weight_wrong"] < 0.05
    assert recorded["weight_good"] > recorded["weight_noisy"] > 0.05
    assert sum(value for key, value in recorded.items() if key.startswith("weight")) == pytest.approx(1)
    swapped, _ = fitted("weighted", ["wrong", "noisy", "good"])
    original, _ = fitted("weighted")
    shown = photographs(range(20))
    np.testing.assert_allclose(swapped.predict(shown).score, original.predict(shown).score)


@given(st.integers(0, 10**6))
def test_weights_are_the_best_of_all_convex_combinations(seed):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(3, 3)) @ rng.normal(size=(3, 8))  # correlated members
    grades = rng.integers(0, 5, 8).astype(float)
    weights = simplex_weights(found.T, grades)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    steps = np.linspace(0, 1, 101)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-9])
    error = np.square(grid @ found - grades).sum(axis=1).min()
    assert np.square(weights @ found - grades).sum() <= error + 1e-9


def test_perfect_members():
    np.testing.assert_allclose(simplex_weights(np.column_stack([GRADES] * 2), GRADES.astype(float)).sum(), 1)


def test_stacked_is_a_ridge_regression():
    grader, recorded = fitted("stacked", ["good", "wrong"])
    inputs, targets = clipped("good", "wrong"), GRADES.astype(float)
    centred = inputs - inputs.mean(axis=0)
    options = [
        np.linalg.solve(centred.T @ centred + alpha * np.eye(2), centred.T @ targets) for alpha in ALPHAS
    ]
    found = np.array([recorded["weight_good"], recorded["weight_wrong"]])
    (weights,) = (one for one in options if np.allclose(one, found))
    constant = targets.mean() - inputs.mean(axis=0) @ weights
    assert recorded["constant"] == pytest.approx(constant)
    assert found[1] < 0  # the wrong member's complaint counts against the grade
    expected = np.clip(inputs @ weights + constant, 0, 4)
    np.testing.assert_allclose(grader.predict(photographs(range(20))).score, expected)


def test_ridge_recovers_a_linear_rule():
    members = np.random.default_rng(0).normal(size=(200, 2))
    weights, constant = ridge(members, members @ [0.7, -0.2] + 1.5)
    np.testing.assert_allclose([*weights, constant], [0.7, -0.2, 1.5], atol=1e-3)


@pytest.mark.parametrize("how", ["weighted", "stacked"])
def test_weights_need_validation(how):
    with pytest.raises(UserError, match=f"how: {how} is fitted on validation photographs.*use mean"):
        fitted(how, val=range(0))


def test_a_mean_needs_none():
    grader, recorded = fitted("mean", val=range(0))
    assert recorded == {}
    assert grader.predict(photographs(range(0))).probabilities.shape == (0, 5)


@pytest.mark.parametrize("how", ["mean", "weighted", "stacked"])
def test_a_saved_model_predicts_as_before(how, tmp_path):
    grader, _ = fitted(how)
    grader.save(tmp_path)
    shown = photographs(range(20))
    expected = grader.predict(shown).probabilities
    np.testing.assert_array_equal(load_model(tmp_path).predict(shown).probabilities, expected)


def test_there_must_be_members():
    with pytest.raises(ValidationError, match="members"):
        Params(members=[])
    with pytest.raises(ValidationError, match="members"):
        Params()

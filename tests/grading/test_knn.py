"""Votes of the nearest neighbours, against a double loop, scikit-learn and votes counted by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from drgrade.grading import knn
from drgrade.grading.base import Photographs, Training
from drgrade.grading.knn import Bank, Knn, votes
from drgrade.params import Grade
from drgrade.tracking import NullRun


class Recorded(NullRun):
    """Keeps what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def metrics(self, values, step=0) -> None:
        self.values |= values


def bank(features, grades) -> Bank:
    return Bank(torch.tensor(np.asarray(features, np.float32)), torch.tensor(grades))


def voted(features, grades, queries, k, temperature) -> np.ndarray:
    return votes(*bank(features, grades).nearest(np.asarray(queries, np.float32), k), temperature)


def by_loops(features, grades, queries, k, temperature) -> np.ndarray:
    """Photograph by photograph, neighbour by neighbour."""
    table = np.zeros((len(queries), 5))
    for row, query in enumerate(queries):
        cosines = [
            sum(a * b for a, b in zip(query, one, strict=True)) / math.hypot(*query) / math.hypot(*one)
            for one in features
        ]
        for place in sorted(range(len(features)), key=lambda place: -cosines[place])[:k]:
            table[row, grades[place]] += math.exp(cosines[place] / temperature)
        table[row] /= table[row].sum()
    return table


@given(
    n=st.integers(1, 12), m=st.integers(0, 9), k=st.integers(1, 15), seed=st.integers(0, 99),
    temperature=st.sampled_from([0.03, 0.07, 1.0]),
)  # fmt: skip
def test_votes_are_those_of_a_double_loop(n, m, k, seed, temperature):
    rng = np.random.default_rng(seed)
    features, queries = rng.normal(size=(n, 6)), rng.normal(size=(m, 6))
    grades = rng.integers(0, 5, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "CHUNK", 4)  # more than one chunk, the last one shorter
        found = voted(features, grades, queries, k, temperature)
    np.testing.assert_allclose(found, by_loops(features, grades, queries, k, temperature), atol=1e-4)


def test_votes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    features, queries, grades = rng.normal(size=(60, 8)), rng.normal(size=(30, 8)), np.arange(60) % 5
    oracle = KNeighborsClassifier(15, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = oracle.fit(features, grades).predict_proba(queries)
    np.testing.assert_allclose(voted(features, grades, queries, 15, 0.07), expected, atol=1e-4)


def test_votes_counted_by_hand():
    """Neighbours at cosine 1, 0.8 and 0; the length of a feature does not count."""
    features, grades = [[5, 0], [0.4, 0.3], [0, 2]], [0, 3, 4]
    two = math.exp(1 / 0.5), math.exp(0.8 / 0.5)
    expected = [two[0] / sum(two), 0, 0, two[1] / sum(two), 0]
    np.testing.assert_allclose(voted(features, grades, [[3, 0]], 2, 0.5), [expected], rtol=1e-6)
    # two weak votes for one grade add up
    three = math.exp(1), math.exp(0.8), math.exp(0)
    expected = [three[0] / sum(three), 0, 0, sum(three[1:]) / sum(three), 0]
    np.testing.assert_allclose(voted(features, [0, 3, 3], [[3, 0]], 9, 1.0), [expected], rtol=1e-6)


def test_a_cold_vote_does_not_overflow():
    found = voted([[1, 0], [0.6, 0.8]], [1, 2], [[1, 0]], 2, 1e-4)
    np.testing.assert_allclose(found, [[0, 1, 0, 0, 0]])


def angles(*degrees) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.fixture
def fit(monkeypatch):
    """A grader fitted on points of the unit circle in place of photographs' features.

    Training: grade 0 about 0 degrees, grade 4 about 90, and in the midst of each a photograph of the other.
    """
    points = angles(-8, -4, 4, 8, 0, 82, 86, 94, 98, 90, 1, 91)
    table = pd.DataFrame({"grade": [0, 0, 0, 0, 4, 4, 4, 4, 4, 0, 0, 4], "row": range(12)})
    monkeypatch.setattr(knn, "features", lambda frozen, images, rows: points[rows])
    images = np.zeros((12, 32, 32, 3), np.uint8)

    def run(k: list[int], val: list[int]) -> tuple[Knn, dict[str, float]]:
        settings = Grade(input_size=32, knn={"k": k}).model_dump()
        grader, recorded = Knn("test_efficientnet", settings), Recorded()
        train = Photographs(images, table.iloc[:10])
        grader.fit(Training(train, Photographs(images, table.iloc[val]), "random", 0, "t", "", recorded))
        return grader, recorded.values

    return run


def test_k_is_chosen_on_validation(fit):
    """One neighbour is the intruder's and always wrong; three outvote it, five more so, ten are even."""
    grader, recorded = fit([1, 5, 3, 10], [10, 11])
    assert grader.k == 3
    assert recorded["val_qwk_k1"] == pytest.approx(-1)
    assert {"val_qwk_k1", "val_qwk_k3", "val_qwk_k5", "val_qwk_k10", "k", "val_qwk"} == set(recorded)
    assert recorded["val_qwk"] == recorded["val_qwk_k3"] == recorded["val_qwk_k5"]
    # two votes of 0 and one of 4, all at cosines within a thousandth of 1: score about 4 / 3, grade 1;
    # mirrored 8 / 3, grade 3: squared distances 1 + 1 against those of chance, (1 + 9 + 9 + 1) / 2
    assert recorded["val_qwk_k3"] == pytest.approx(1 - 2 / 10)


def test_the_first_k_where_nothing_validates(fit):
    grader, recorded = fit([10, 3], [])
    assert grader.k == 10
    assert recorded == {}


def test_more_neighbours_than_photographs_are_all_of_them(fit, tmp_path):
    grader, _ = fit([99, 10], [10, 11])
    assert grader.k == 10  # equals, so the smaller
    many, _ = fit([99], [])
    images, rows = np.zeros((12, 32, 32, 3), np.uint8), np.array([10, 11])
    np.testing.assert_array_equal(many.predict(images, rows), grader.predict(images, rows))
    many.save(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["k"] == 99


def test_there_is_no_network_to_explain(fit, tmp_path):
    from drgrade.errors import UserError
    from drgrade.explain.stage import first_model

    fit([1], [])[0].save(tmp_path / "seed0")
    with pytest.raises(UserError, match="'knn' has no network to explain"):
        first_model(tmp_path)

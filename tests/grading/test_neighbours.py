"""Votes of the nearest neighbours, against a double loop, scikit-learn and votes counted by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from drgrade.grading import neighbours
from drgrade.grading.neighbours import Bank, votes


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
        patch.setattr(neighbours, "CHUNK", 4)  # more than one chunk, the last one shorter
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

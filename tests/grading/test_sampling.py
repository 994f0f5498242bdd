"""Published weights and class shares; orders are functions of seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.grading.sampling import class_weights, order, sampling_weights
from drgrade.params.training import Sampling
from drgrade.training import Batches

EYEPACS = np.array([25810, 2443, 5292, 873, 708])
O_O_WEIGHTS = [
    1.3609453700116234, 14.378223495702006, 6.637566137566138, 40.235967926689575, 49.612994350282484
]  # fmt: skip
SHARES = {
    1: [20, 20, 20, 20, 20],
    28: [27.6, 18.2, 20.8, 16.8, 16.7],
    50: [34.6, 16.5, 21.5, 13.8, 13.6],
    100: [48.2, 13.3, 22.8, 8.1, 7.6],
    150: [54.8, 11.8, 23.5, 5.3, 4.6],
    200: [57.1, 11.2, 23.7, 4.3, 3.6],
    5000: [58.1, 11.0, 23.8, 3.9, 3.2],
}
"""Percent of the drawn photographs of each grade in o_O's epochs, which count from 1."""


def shares(strategy: str, epoch: int, counts=EYEPACS, **changed) -> np.ndarray:
    drawn = sampling_weights(Sampling(strategy=strategy, **changed), counts, epoch) * counts
    return drawn / drawn.sum()


def test_progressive_weights_of_eight_to_two():
    found = [sampling_weights(Sampling(strategy="progressive"), [8, 2, 0, 0, 0], epoch) for epoch in range(3)]
    np.testing.assert_allclose(found, [[1, 4, 0, 0, 0], [1, 3.7, 0, 0, 0], [1, 3.43, 0, 0, 0]])


def test_o_o_starts_from_the_published_weights():
    found = sampling_weights(Sampling(strategy="o_o"), EYEPACS, 0)
    np.testing.assert_allclose(found, O_O_WEIGHTS, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("epoch", "percent"), SHARES.items())
def test_o_o_shares(epoch, percent):
    np.testing.assert_allclose(100 * shares("o_o", epoch - 1), percent, atol=0.051)


@pytest.mark.parametrize("epoch", [1, 28, 200])
def test_o_o_draws_its_shares(epoch):
    grades = np.repeat(np.arange(5), EYEPACS)
    weights = sampling_weights(Sampling(strategy="o_o"), EYEPACS, epoch - 1)
    drawn = grades[order(grades, weights, 0, epoch - 1)]
    expected = shares("o_o", epoch - 1)
    error = np.sqrt(expected * (1 - expected) / len(grades))
    found = np.bincount(drawn, minlength=5) / len(grades)
    assert (np.abs(found - expected) < 4 * error).all()


def test_photographs_of_a_grade_are_drawn_equally_often():
    grades = np.repeat([0, 1], [300, 20])
    drawn = np.concatenate([order(grades, [1, 15], 0, epoch) for epoch in range(200)])
    times = np.bincount(drawn, minlength=320)
    # each grade gets half of 64,000 draws; binomial deviations of a photograph's number are 10 and 39
    assert np.abs(times[:300] - 32000 / 300).max() < 5 * 10.4
    assert np.abs(times[300:] - 1600).max() < 5 * 39.5


def test_class_sampling_is_balanced_in_every_epoch():
    for epoch in (0, 100):
        np.testing.assert_allclose(shares("class", epoch), 0.2)


def test_progressive_goes_from_balanced_to_the_data():
    np.testing.assert_allclose(shares("progressive", 0), 0.2)
    np.testing.assert_allclose(shares("progressive", 500), EYEPACS / EYEPACS.sum())
    np.testing.assert_allclose(shares("progressive", 3, decay=1.0), 0.2)
    np.testing.assert_allclose(shares("progressive", 1, decay=0.0), EYEPACS / EYEPACS.sum())


def test_o_o_approaches_its_final_weights():
    final = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = sampling_weights(Sampling(strategy="o_o", decay=0.0, final_weights=final), EYEPACS, 1)
    np.testing.assert_array_equal(found, final)


def test_instance_sampling_has_no_weights():
    assert sampling_weights(Sampling(), EYEPACS, 0) is None


@pytest.mark.parametrize("strategy", ["class", "progressive", "o_o"])
def test_an_absent_grade_is_never_drawn(strategy):
    counts = np.array([50, 0, 20, 5, 1])
    for epoch in (0, 30):
        found = sampling_weights(Sampling(strategy=strategy), counts, epoch)
        assert found[1] == 0
        assert (found[[0, 2, 3, 4]] > 0).all()


def test_class_weights_of_the_loss():
    counts = [8, 2, 0, 4, 1]
    balance = np.array([1, 4, 1, 2, 8])
    assert class_weights("none", counts, 0) is None
    for epoch in (0, 5):
        np.testing.assert_array_equal(class_weights("balance", counts, epoch), balance)
        np.testing.assert_array_equal(class_weights([1, 2, 3, 4, 5.5], counts, epoch), [1, 2, 3, 4, 5.5])
    for epoch, part in enumerate([1, 0.5, 0.25]):
        expected = part * balance + 1 - part
        np.testing.assert_allclose(class_weights("dynamic", counts, epoch, 0.5), expected)
    np.testing.assert_array_equal(class_weights("dynamic", counts, 0), balance)  # published: decay 0
    np.testing.assert_array_equal(class_weights("dynamic", counts, 1), np.ones(5))


@given(rows=st.integers(1, 60), seed=st.integers(0, 99), epoch=st.integers(0, 99), size=st.integers(2, 9))
def test_without_weights_the_order_is_that_of_the_batches(rows, seed, epoch, size):
    found = order(np.zeros(rows), None, seed, epoch)
    assert found.dtype == np.int64
    batches = np.concatenate(Batches(rows, size, seed, epoch).batches)
    np.testing.assert_array_equal(found[: len(batches)], batches)
    np.testing.assert_array_equal(np.sort(found), np.arange(rows))


def test_an_order_depends_on_seed_and_epoch_only():
    grades, weights = np.arange(100) % 5, [1, 2, 3, 4, 5]
    found = {(seed, epoch): order(grades, weights, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    for (seed, epoch), drawn in reversed(found.items()):
        assert drawn.shape == (100,)
        assert drawn.dtype == np.int64
        np.testing.assert_array_equal(drawn, order(grades, weights, seed, epoch))
    assert len({tuple(drawn) for drawn in found.values()}) == 4

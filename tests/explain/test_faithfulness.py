"""Insertion and deletion of networks whose grade is known for every mixture of crop and blurred crop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drgrade.explain import faithfulness as module
from drgrade.explain.faithfulness import blur, expected_grades, faithfulness, inserted


class Weighted(torch.nn.Module):
    """The grade is a weighted sum of the red pixels, plus 1."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(weights))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch[:, 0].double() * self.weights).sum(dim=(1, 2)) + 1


@pytest.fixture
def black_when_blurred(monkeypatch):
    """Blurring makes the field of view black, so that the curves of a linear network are sums of pixels."""
    monkeypatch.setattr(module, "blur", lambda image, fov: np.where(fov, np.float32(0), image))


def test_a_linear_network_by_hand(black_when_blurred):
    # four pixels in the field, whose parts of the grade are 4, 2, 1 and 1; the map has the right order
    image = torch.zeros(3, 3, 3)
    image[0, 0, :2], image[0, 1, :2], image[0, 2, 2] = torch.tensor([1.0, 1]), torch.tensor([1.0, 1]), 5.0
    weights = np.zeros((3, 3))
    weights[0, :2], weights[1, :2], weights[2, 2] = [4, 2], [1, 1], 2  # the last lies outside the field
    fov = np.zeros((3, 3), bool)
    fov[:2, :2] = True
    heat = np.zeros((3, 3), np.float32)
    heat[0, :2], heat[1, :2], heat[2, 2] = [0.9, 0.5], [0.2, 0.1], 7
    found = faithfulness(Weighted(weights), image, heat, fov, "a", steps=4)
    always = 2 * 5 + 1
    # trapezoids over 0, 4, 6, 7, 8 and over 8, 4, 2, 1, 0, a quarter wide, in units of grade 4
    assert found["insertion"] == pytest.approx((always + (0 / 2 + 4 + 6 + 7 + 8 / 2) / 4) / 4)
    assert found["deletion"] == pytest.approx((always + (8 / 2 + 4 + 2 + 1 + 0 / 2) / 4) / 4)
    # tied pixels fade in together: the straight line from 0 to 8
    assert found["fov_insertion"] == pytest.approx((always + 4) / 4)
    assert found["fov_deletion"] == pytest.approx((always + 4) / 4)
    worst = faithfulness(Weighted(weights), image, -heat, fov, "a", steps=4)
    assert worst["insertion"] == pytest.approx((always + (0 / 2 + 1 + 2 + 4 + 8 / 2) / 4) / 4)
    baselines = [key for key in found if "_" in key]
    assert len(baselines) == 6
    assert [worst[key] for key in baselines] == [found[key] for key in baselines]


def test_baselines_are_a_random_order_and_the_distance_from_the_edge(black_when_blurred):
    side = 9
    fov = np.ones((side, side), bool)
    rows, columns = np.indices(fov.shape)
    distance = np.minimum.reduce([rows, columns, side - 1 - rows, side - 1 - columns]).astype(np.float64)
    image = torch.ones(3, side, side)
    weights = np.where(distance == 4, 8.0, 0)  # all of the grade comes from the pixel in the middle
    found = faithfulness(Weighted(weights), image, distance, fov, "a", steps=81)
    assert found["prior_insertion"] == pytest.approx(found["insertion"])
    assert found["insertion"] == pytest.approx(1 / 4 + 2 * (1 - 0.5 / 81))
    order = {key: faithfulness(Weighted(weights), image, distance, fov, key, steps=81) for key in "abcdefgh"}
    assert order["a"] == found
    insertion = np.array([one["random_insertion"] for one in order.values()])
    deletion = np.array([one["random_deletion"] for one in order.values()])
    assert insertion.std() > 0.2
    np.testing.assert_allclose(insertion + deletion, 2.5)


@given(
    values=arrays(np.float32, (4, 5), elements=st.sampled_from([0, 0.5, 1, 3])),
    fov=arrays(np.bool_, (4, 5)).filter(np.any),
    steps=st.integers(1, 7),
)
def test_each_step_inserts_the_same_area_and_the_hottest_pixels_come_first(values, fov, steps):
    found = inserted(values, fov, steps).astype(np.float64)
    assert found.shape == (steps + 1, 4, 5)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), np.linspace(0, fov.sum(), steps + 1), atol=1e-4)
    assert not found[:, ~fov].any()
    for part in found:
        for level in np.unique(values[fov]):
            tied = part[fov & (values == level)]
            assert np.ptp(tied) == 0
            if tied[0] > 0:
                assert (part[fov & (values > level)] > 1 - 1e-5).all()


def test_only_the_field_of_view_is_blurred():
    image = np.random.default_rng(0).random((3, 40, 40)).astype(np.float32)
    fov = np.zeros((40, 40), bool)
    fov[10:30, 10:30] = True
    found = blur(image, fov)
    np.testing.assert_array_equal(found[:, ~fov], image[:, ~fov])
    assert found[:, fov].std() < 0.3 * image[:, fov].std()
    assert found[:, fov].mean() == pytest.approx(0.5, abs=0.03)
    assert found.dtype == np.float32


def test_without_a_field_of_view_there_is_nothing_to_measure():
    image, nowhere = torch.ones(3, 4, 4), np.zeros((4, 4), bool)
    assert faithfulness(Weighted(np.ones((4, 4))), image, np.ones((4, 4)), nowhere, "a") == {}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_grades_of_scores(shape):
    scores = torch.rand(50)
    found = expected_grades(lambda part: part[:, 0, 0, 0].reshape(-1, *shape), scores[:, None, None, None])
    np.testing.assert_allclose(found, scores.double().numpy())


def test_grades_of_logits():
    logits = torch.full((2, 5), -50.0)
    logits[0, 3] = logits[1, 1] = logits[1, 2] = 50
    found = expected_grades(lambda part: logits[: len(part)], torch.zeros(2, 3, 4, 4))
    np.testing.assert_allclose(found, [3, 1.5])

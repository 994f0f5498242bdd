"""Numbers and sizes of marks, on maps drawn by hand."""

import numpy as np
import pytest
import torch

from drgrade.grading.lesion_statistics import FLOOR, PER_KIND, LesionRegression, statistics, statistics_of
from drgrade.params import Segmentation
from drgrade.segmentation.network import SegmentationNetwork


def drawn() -> np.ndarray:
    """One kind, 1000 px: a mark of 20 x 20 at 0.9, one of 10 x 10 at 0.6, one pixel at 0.7."""
    chance = np.zeros((1, 1000, 1000), np.float32)
    chance[0, 100:120, 100:120] = 0.9
    chance[0, 700:710, 100:110] = 0.6
    chance[0, 900, 900] = 0.7
    return chance


def test_marks_are_counted_and_measured():
    found = statistics(drawn())
    assert found.shape == (PER_KIND,)
    total = 0.9 * 400 + 0.6 * 100 + 0.7
    np.testing.assert_allclose(found[0], total / 1e6, rtol=1e-4)
    # share, number and largest share above 0.2, 0.5 and 0.8; a single pixel is too small to count
    wanted = [501e-6, 2, 400e-6, 501e-6, 2, 400e-6, 400e-6, 1, 400e-6]
    np.testing.assert_allclose(found[1:10], wanted, rtol=1e-5)
    # quadrants: top left, top right, bottom left, bottom right
    wanted = [
        0.9 * 400 / 250_000,
        400 / 250_000,
        0,
        0,
        60 / 250_000,
        100 / 250_000,
        0.7 / 250_000,
        1 / 250_000,
    ]
    np.testing.assert_allclose(found[10:18], wanted, rtol=1e-3, atol=1e-9)
    # highest, and lowest of the highest 100, 500 and 2000 pixels
    np.testing.assert_allclose(found[18:], [0.9, 0.9, 0.6, 0.0], rtol=1e-5)


def test_an_empty_map_has_no_marks():
    np.testing.assert_array_equal(statistics(np.zeros((2, 64, 64), np.float32)), np.zeros(2 * PER_KIND))


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(Segmentation(encoder="test_efficientnet", start="random", kinds=["MA", "EX"]))


def test_they_are_those_of_the_networks_maps(network):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = statistics_of(network, images, np.array([2, 0]))
    with torch.inference_mode():
        batch = torch.from_numpy(images[[2, 0]]).permute(0, 3, 1, 2)
        maps = network.eval()(batch).sigmoid().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found) - FLOOR, [statistics(one) for one in maps], rtol=1e-3, atol=1e-5)
    assert statistics_of(network, images, np.array([], int)).shape == (0, 2 * PER_KIND)


def test_the_linear_unit_is_kept(network):
    regression = LesionRegression(network)
    weights = np.linspace(-1, 1, 2 * PER_KIND)
    regression.set_head(weights, 0.5)
    found, constant = regression.linear()
    np.testing.assert_allclose(found, weights, atol=1e-7)
    assert constant == 0.5
    assert [name for name, one in regression.named_parameters() if one.requires_grad] == [
        "head.weight", "head.bias",
    ]  # fmt: skip

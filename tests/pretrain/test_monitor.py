import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torchvision.io import read_image

from drgrade.pretrain.monitor import (
    PAIRS,
    PHOTOGRAPHS,
    Monitor,
    alignment,
    effective_rank,
    potential,
    save_crops,
    save_views,
)


def test_alignment_is_the_squared_distance_of_pairs():
    axes = torch.eye(4)
    assert alignment(axes, axes) == 0
    assert alignment(axes, -axes) == 4
    assert alignment(axes, axes.roll(1, 0)) == 2
    assert alignment(axes[:2], torch.stack([axes[0], -axes[1]])) == 2


def test_uniformity_of_known_points():
    axes = torch.eye(5)  # all pairs at a squared distance of 2
    assert float(potential(axes, 2.0).mean().log()) == pytest.approx(-4)
    assert float(potential(axes, 0.5).mean().log()) == pytest.approx(-1)
    assert float(potential(torch.ones(5, 1), 2.0).mean().log()) == 0
    poles = torch.tensor([[1.0], [1.0], [-1.0]])  # squared distances 0, 4, 4
    assert potential(poles, 2.0).tolist() == pytest.approx([1, math.exp(-8), math.exp(-8)])


@pytest.mark.parametrize(("features", "rank"), [
    (torch.eye(7)[:, torch.arange(7)] * -3, 7),
    (torch.arange(1.0, 6)[:, None] * torch.ones(5, 9), 1),
    (torch.diag(torch.tensor([3.0, 1, 0])), math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
    (torch.tensor([[3.0, 1], [3, -1]]), math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),  # uncentred
    (torch.zeros(3, 4), 0),
])  # fmt: skip
def test_effective_rank_of_known_matrices(features, rank):
    assert effective_rank(features) == pytest.approx(rank)


def test_rank_of_diverged_features_is_not_a_number():
    assert math.isnan(effective_rank(torch.tensor([[1.0, float("inf")]])))


def test_an_epoch_is_the_mean_of_its_batches_and_the_next_begins_anew():
    axes = torch.eye(4)
    monitor = Monitor(temperature=0.1)
    assert monitor.values() == {}
    monitor.see(torch.eye(4), 3 * axes, axes)  # lengths do not count
    monitor.see(torch.eye(4), axes, -axes)
    assert monitor.values() == pytest.approx({
        "alignment": 2, "uniformity": -4, "scaled_alignment": 10, "scaled_uniformity": -10,
        "feature_rank": 4,
    })  # fmt: skip
    monitor.see(torch.ones(2, 4), torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]]))
    uniformity = math.log((1 + math.exp(-8)) / 2)
    values = monitor.values()
    assert values["uniformity"] == pytest.approx(uniformity)
    assert values["feature_rank"] == pytest.approx(1)


def test_one_temperature_is_that_of_the_paper():
    monitor = Monitor(temperature=0.25)
    monitor.see(torch.eye(2), torch.eye(2), torch.eye(2))
    values = monitor.values()
    assert values["scaled_uniformity"] == values["uniformity"] == pytest.approx(-4)


def test_scaled_parts_add_up_to_the_loss():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(256, 128, generator=generator)
    second = first + torch.randn(256, 128, generator=generator)
    monitor = Monitor(temperature=0.5)
    monitor.see(first, first, second)
    values = monitor.values()
    parts = values["scaled_alignment"] + values["scaled_uniformity"] + math.log(511)
    assert float(NTXentLoss(0.5)(first, second)) == pytest.approx(parts, abs=0.02)


def test_rank_is_that_of_the_features_seen_last(monkeypatch):
    monkeypatch.setattr("drgrade.pretrain.monitor.SAMPLE", 16)
    monitor, points = Monitor(temperature=0.1), torch.eye(2)
    features = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    for part in features.split([7, 9, 9, 5]):
        monitor.see(part, points, points)
    values = np.linalg.svd(features[-16:].numpy(), compute_uv=False)
    share = values / values.sum()
    assert monitor.values()["feature_rank"] == pytest.approx(
        math.exp(-(share * np.log(share)).sum()), rel=1e-5
    )


def test_views_are_shown_pair_by_pair(tmp_path):
    pairs, side = PAIRS + 3, 6
    shade = torch.cat([torch.arange(pairs) * 10, 100 + torch.arange(pairs) * 10]) / 255
    save_views(shade[:, None, None, None].expand(-1, 3, side, side), tmp_path / "views.png")
    picture = read_image(str(tmp_path / "views.png")).numpy()
    assert picture.shape == (3, 2 * (side + 2) + 2, PAIRS * (side + 2) + 2)
    middles = 2 + side // 2 + (side + 2) * np.arange(PAIRS)
    assert (picture[0, middles[0], middles] == 10 * np.arange(PAIRS)).all()
    assert (picture[0, middles[1], middles] == 100 + 10 * np.arange(PAIRS)).all()


def test_crops_of_several_sizes_are_shown_a_row_a_photograph(tmp_path):
    photographs = PHOTOGRAPHS + 2
    shade = torch.arange(1, photographs + 1)[:, None, None, None] / 255
    large, small = (10 * shade).expand(-1, 3, 8, 8), (20 * shade).expand(-1, 3, 3, 3)
    save_crops([large, small, large + shade], tmp_path / "crops.png")
    picture = read_image(str(tmp_path / "crops.png")).numpy()
    expected = np.zeros((2 + 10 * PHOTOGRAPHS, 2 + 10 * 3), np.uint8)  # frames of 2 pixels
    for row in range(PHOTOGRAPHS):
        lines = slice(2 + 10 * row, 10 + 10 * row)
        expected[lines, 2:10] = 10 * (row + 1)
        expected[4 + 10 * row : 7 + 10 * row, 14:17] = 20 * (row + 1)
        expected[lines, 22:30] = 11 * (row + 1)
    assert (picture == expected).all()

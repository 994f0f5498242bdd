import numpy as np
import pytest
import torch
from torch import nn

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, expected_grade
from drgrade.explain.cam import last_feature_map


class Bright(nn.Module):
    """A network whose grade is the mean brightness after one convolution with known weights."""

    def __init__(self, outputs=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        nn.init.constant_(self.conv.weight, 1 / 192)
        nn.init.zeros_(self.conv.bias)
        self.outputs = outputs

    def forward(self, batch):
        score = torch.relu(self.conv(batch)).mean(dim=(1, 2, 3))
        return score if self.outputs is None else score[:, None] * torch.arange(self.outputs)


def blob(x, y, side=64):
    batch = torch.zeros(1, 3, side, side)
    batch[..., y - 4 : y + 4, x - 4 : x + 4] = 1
    return batch


@pytest.mark.parametrize("outputs", [None, 5])
@pytest.mark.parametrize(("x", "y"), [(12, 12), (52, 12), (12, 44)])
def test_heat_lies_on_what_raises_the_grade(x, y, outputs):
    heat = EXPLAINERS.get("cam")().heat(Bright(outputs), blob(x, y))
    assert heat.shape == (1, 64, 64)
    assert heat.dtype == np.float32
    assert (heat.min(), heat.max()) == pytest.approx((0, 1), abs=1e-5)
    rows, columns = np.nonzero(heat[0] > 0.5)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1)
    assert len(rows) < 0.1 * 64 * 64


@pytest.mark.parametrize(("x", "y"), [(20, 28), (36, 44)])
def test_the_margin_that_an_encoder_cuts_off_is_cold(blocks, x, y):
    heat = EXPLAINERS.get("cam")().heat(blocks(cut=8), blob(x, y))
    assert heat.shape == (1, 64, 64)
    rows, columns = np.nonzero(heat[0] > 0.5)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1)
    heat[:, 8:56, 8:56] = 0
    assert not heat.any()


def test_what_lowers_the_grade_stays_cold():
    model = Bright()
    with torch.no_grad():
        model.conv.bias.fill_(1.0)
        model.conv.weight.mul_(-1)
    batch = blob(12, 12)
    heat = EXPLAINERS.get("cam")().heat(model, batch)[0]
    assert heat[11:13, 11:13].max() < 0.2  # the middle of one cell, between warm ones
    assert heat[40:, 40:].min() > 0.9


def test_map_of_each_picture_is_its_own():
    batch = torch.cat([blob(12, 12), blob(52, 44), torch.zeros(1, 3, 64, 64)] * 4)
    together = EXPLAINERS.get("cam")().heat(Bright(), batch)
    for index in range(12):
        alone = EXPLAINERS.get("cam")().heat(Bright(), batch[index : index + 1])[0]
        np.testing.assert_allclose(together[index], alone, atol=1e-5)
    assert together[2].max() == 0


class Regressor(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.encoder = create_encoder(name, "random")
        self.head = nn.Linear(self.encoder.num_features, 1)

    def forward(self, batch):
        return self.head(self.encoder(batch)).squeeze(1)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_timm_backbones_even_frozen(name):
    torch.manual_seed(0)
    model = Regressor(name).requires_grad_(False)
    batch = torch.randn(2, 3, 96, 96)
    layer = last_feature_map(model, batch)
    shapes = []
    handle = layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    model(batch)
    handle.remove()
    assert shapes == [(2, model.encoder.num_features, 3, 3)]
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    heat = EXPLAINERS.get("cam")().heat(model, batch)
    assert heat.shape == (2, 96, 96)
    assert heat.std() > 0
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_transformers_are_refused():
    model, batch = Regressor("test_vit"), torch.zeros(1, 3, 160, 160)
    for method in ("cam", "layercam"):
        with pytest.raises(UserError, match=f"^explanations.<name>.method: {method} needs a convolutional"):
            EXPLAINERS.get(method)().heat(model, batch)


def test_expected_grade():
    assert expected_grade(torch.tensor(2.5)).item() == 2.5
    assert expected_grade(torch.tensor([2.5])).item() == 2.5
    assert expected_grade(torch.tensor([0.0, 0, 0, 0, 0])).item() == pytest.approx(2)
    assert expected_grade(torch.tensor([-50.0, -50, -50, 50, -50])).item() == pytest.approx(3)

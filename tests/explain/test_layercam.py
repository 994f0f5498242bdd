"""LayerCAM against its equation, where Grad-CAM gives another map."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drgrade.explain.base import EXPLAINERS


class Cells(nn.Module):
    """The score is a weighted sum of a 2 x 2 feature map of two channels, each value with its own weight."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 32, stride=32, bias=False)
        self.conv.weight.data[:] = torch.tensor([1.0, 2.0])[:, None, None, None] / (3 * 32**2)
        self.weights = weights

    def forward(self, batch: Tensor) -> Tensor:
        return (self.conv(batch) * self.weights).sum(dim=(1, 2, 3))


def corners(heat: np.ndarray) -> np.ndarray:
    """Values in the corners of a map, which lie outside the centres of all cells: those of the four cells."""
    return heat[0][[0, 0, -1, -1], [0, -1, 0, -1]]


def scaled(cells: np.ndarray) -> np.ndarray:
    return (cells - cells.min()) / (cells.max() - cells.min())


def test_each_position_is_weighted_by_its_own_positive_gradient():
    brightness = np.array([0.9, 0.5, 0.4, 0.2])
    weights = np.array([[1.0, -3.0, 2.0, 0.5], [0.25, 0.5, -1.0, 1.0]])
    image = np.kron(brightness.reshape(2, 2), np.ones((32, 32)))
    batch = torch.from_numpy(image).float().expand(1, 3, 64, 64)
    model = Cells(torch.from_numpy(weights.reshape(2, 2, 2)).float())
    activations = np.outer([1, 2], brightness)
    found = corners(EXPLAINERS.get("layercam")().heat(model, batch))
    np.testing.assert_allclose(found, scaled((weights.clip(0) * activations).sum(axis=0)), atol=1e-4)
    mean_weighted = (weights.mean(axis=1)[:, None] * activations).sum(axis=0).clip(0)
    assert not np.allclose(found, scaled(mean_weighted), atol=0.05)
    found = corners(EXPLAINERS.get("cam")().heat(model, batch))
    np.testing.assert_allclose(found, scaled(mean_weighted), atol=1e-4)


def test_the_margin_that_an_encoder_cuts_off_is_cold(blocks):
    heat = EXPLAINERS.get("layercam")().heat(blocks(cut=8), torch.rand(2, 3, 64, 64))
    assert heat.shape == (2, 64, 64)
    assert heat[:, 8:56, 8:56].max() == pytest.approx(1, abs=0.05)
    heat[:, 8:56, 8:56] = 0
    assert not heat.any()

"""A network whose map is known: the brightness of blocks of the input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Blocks(nn.Module):
    """An encoder with two features: the mean of each block of 8 x 8 pixels, and its negative.

    Args:
        cut: pixels that it cuts off each side of the input.
    """

    num_features = 2

    def __init__(self, cut: int) -> None:
        super().__init__()
        self.cut = cut
        self.conv = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        self.conv.weight.data[:] = torch.tensor([1.0, -1.0])[:, None, None, None] / 192

    def margin(self, size: int) -> int:
        return self.cut

    def forward_features(self, batch: Tensor) -> Tensor:
        side = batch.shape[-1]
        return self.conv(batch[..., self.cut : side - self.cut, self.cut : side - self.cut])

    def forward(self, batch: Tensor) -> Tensor:
        return self.forward_features(batch).mean(dim=(2, 3))


class Network(nn.Module):
    """The encoder with a linear unit: of the two features, only the first counts."""

    def __init__(self, encoder: nn.Module, weight: float, bias: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(2, 1)
        self.head.weight.data[:] = torch.tensor([weight, 0.0])
        self.head.bias.data[:] = bias

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.encoder(batch)).squeeze(1)


@pytest.fixture
def blocks() -> Callable[..., Network]:
    """Creates a network with the map ``weight * brightness + bias``."""

    def network(weight: float = 1.0, bias: float = 0.0, cut: int = 0) -> Network:
        return Network(Blocks(cut), weight, bias)

    return network

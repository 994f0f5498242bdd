"""Lesion segmentation of DeepMT-DR: a U-Net of multi-scale blocks with five side outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.networks.deepmt.recompute import recomputed
from drgrade.schema import LESIONS

LEVELS = 5
"""Resolutions: whole, half, ..., a sixteenth; sides of images must be multiples of 16."""
ALL_SIDES = (0.4, 0.2, 0.2, 1.0, 1.0)
"""Weights of the side outputs from the coarsest to the finest; the published code leaves out the finest."""


def normalised(width: int) -> nn.Sequential:
    """BatchNorm and ReLU of ``width`` channels."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())


class Parallel(nn.Module):
    """A 3x3 and a 5x5 convolution side by side, each with half of the output channels; BatchNorm, ReLU."""

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.small = nn.Conv2d(fan_in, width // 2, 3, padding=1)
        self.large = nn.Conv2d(fan_in, width // 2, 5, padding=2)
        self.norm = normalised(width)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, width, H, W)."""
        found: Tensor = self.norm(torch.cat([self.small(maps), self.large(maps)], dim=1))
        return found


class Enlarge(nn.Module):
    """Twice the side by nearest neighbour, then :class:`Parallel` convolutions."""

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.parallel = Parallel(fan_in, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, width, 2 H, 2 W)."""
        found: Tensor = self.parallel(F.interpolate(maps, scale_factor=2, mode="nearest"))
        return found


class MultiScale(nn.Module):
    """:class:`Parallel` convolutions, and a 3x3 convolution with BatchNorm that is added to them; ReLU.

    The paper calls its modules residual. The addition has no parameters, so their number is that of the
    authors' code, which has none.
    """

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.parallel = Parallel(fan_in, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (B, width, H, W); several inputs are concatenated."""
        several: Tensor = self.parallel(torch.cat(maps, dim=1))
        return F.relu(several + self.norm(self.conv(several)))


class Segmentation(nn.Module):
    """Logits of lesion masks (B, 4, H, W) of images (B, 3, H, W) in 0-1; channels are MA, HE, EX, SE.

    Nine multi-scale blocks: five of the encoder and four of the decoder. The logits are the sum of five side
    outputs, enlarged by nearest neighbour. A pixel may belong to several kinds: take the sigmoid of each.

    Args:
        width: channels of the finest level; each coarser one has twice as many. Published: 64.
        sides: weights of the side outputs, from the coarsest to the finest.
        checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self, width: int = 64, sides: Sequence[float] = ALL_SIDES, *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.sides, self.checkpointing = tuple(sides), checkpointing
        widths = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(map(MultiScale, [3, *widths], widths))
        finer = widths[-2::-1]
        self.enlarge = nn.ModuleList(Enlarge(2 * one, one) for one in finer)
        self.up = nn.ModuleList(MultiScale(2 * one, one) for one in finer)
        self.heads = nn.ModuleList(nn.Conv2d(one, len(LESIONS), 1) for one in reversed(widths))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4, H, W)."""
        maps, skipped = images, []
        for level, block in enumerate(self.down):
            maps = self._run(block, F.max_pool2d(maps, 2) if level else maps)
            skipped.append(maps)
        logits = self._side(0, skipped.pop(), images)
        for place, (enlarge, block) in enumerate(zip(self.enlarge, self.up, strict=True), 1):
            maps = self._run(block, skipped.pop(), self._run(enlarge, maps))
            logits = logits + self._side(place, maps, images)
        return logits

    def _run(self, block: nn.Module, *maps: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return recomputed(block, *maps)
        found: Tensor = block(*maps)
        return found

    def _side(self, place: int, maps: Tensor, images: Tensor) -> Tensor:
        """A side output at full resolution, times its weight."""
        return F.interpolate(self.sides[place] * self.heads[place](maps), images.shape[-2:], mode="nearest")

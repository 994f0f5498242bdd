"""DeepMT-DR as one encoder: features for the grade from low-resolution images, through both other tasks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.images.augment import normalise
from drgrade.networks.deepmt.gmsv import STAGES
from drgrade.networks.deepmt.segmentation import Segmentation
from drgrade.schema import LESIONS

PIXELS = 2**22
"""High-resolution pixels that are computed at a time without gradients: four images of 1024 px."""


def pyramid(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """Spatial pyramid pooling (He et al., 2014): maxima over grids of cells, (B, C * sum of sides^2).

    Args:
        maps: feature maps (B, C, h, w) of any size.
        sides: cells a side of each grid, published: 4, 2, 1.
    """
    return torch.cat([F.adaptive_max_pool2d(maps, side).flatten(1) for side in sides], dim=1)


def widen_stem(trunk: nn.Module, extra: int) -> None:
    """Let a network take ``extra`` further channels after red, green and blue; their weights are 0 at first.

    Args:
        trunk: a convolutional network of timm; its first convolution is changed in place.
        extra: number of channels.
    """
    stem = next(module for module in trunk.modules() if isinstance(module, nn.Conv2d))
    colours = stem.weight.detach()
    blank = colours.new_zeros(len(colours), extra, *colours.shape[2:])
    stem.weight = nn.Parameter(torch.cat([colours, blank], dim=1))
    stem.in_channels += extra


class MultiTask(nn.Module):
    """The three networks in a row. Input: images (B, 3, h, w) in 0-1; output: features (B, hidden).

    The grading network takes the enlarged image and the lesion probabilities as seven channels; without a
    segmentation network it takes the image alone.

    Args:
        restore: enlarges images (B, 3, h, w) in 0-1 ``scale`` times.
        segment: logits of lesion masks, or None.
        trunk: a convolutional network of timm for three channels.
        mean: channel means that it expects.
        std: standard deviations that it expects.
        grids: cells a side of the pyramid's grids.
        hidden: units of the dense layer after the pyramid.

    Attributes:
        encoder: the trunk, for seven channels.
        num_features: number of features, ``hidden``.
    """

    def __init__(
        self,
        restore: nn.Module,
        segment: Segmentation | None,
        trunk: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        grids: Sequence[int] = (4, 2, 1),
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.restore, self.segment, self.encoder = restore, segment, trunk
        self.scale: int = restore.scale  # type: ignore[assignment]
        self.mean, self.std, self.grids, self.num_features = tuple(mean), tuple(std), tuple(grids), hidden
        if segment is not None:
            widen_stem(trunk, len(LESIONS))
        channels: int = trunk.num_features  # type: ignore[assignment]
        self.hidden = nn.Linear(channels * sum(side**2 for side in grids), hidden)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, hidden)."""
        parts = [images] if torch.is_grad_enabled() else self._parts(images, self.scale)
        return torch.cat([self.read(*self.prepared(part))[0] for part in parts])

    def prepared(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the grading network: enlarged images and their lesions, see :meth:`lesions`."""
        restored = self.restore(images)
        return restored, self.lesions(restored)

    @torch.no_grad()
    def prepared_in_parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Like :meth:`prepared`, without gradients and with little memory."""
        restored, lesions = zip(*map(self.prepared, self._parts(images, self.scale)), strict=True)
        return torch.cat(restored), torch.cat(lesions)

    def lesions(self, images: Tensor) -> Tensor:
        """Lesion probabilities (B, 4, H, W) of enlarged images; (B, 0, H, W) without segmentation."""
        if self.segment is None:
            return images[:, :0]
        probabilities: Tensor = self.segment(images).sigmoid()
        return probabilities

    @torch.no_grad()
    def lesions_in_parts(self, images: Tensor) -> Tensor:
        """Like :meth:`lesions`, without gradients and with little memory."""
        return torch.cat([self.lesions(part) for part in self._parts(images, 1)])

    def lesion_map(self, images: Tensor) -> Tensor | None:
        """Largest probability of the four kinds of lesion at each pixel of the enlarged images.

        Args:
            images: low-resolution images (B, 3, h, w) in 0-1, as in :meth:`forward`.

        Returns:
            (B, scale * h, scale * w) in 0-1, without gradients; None without a segmentation network.
        """
        return None if self.segment is None else self.prepared_in_parts(images)[1].amax(dim=1)

    def read(self, images: Tensor, lesions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, hidden) of enlarged images and lesions, and the last four stages' feature maps."""
        inputs = torch.cat([normalise(images, self.mean, self.std), lesions.to(images.dtype)], dim=1)
        trunk: Any = self.encoder
        last, maps = trunk.forward_intermediates(inputs, indices=STAGES)
        return F.relu(self.hidden(pyramid(last, self.grids))), maps

    def _parts(self, images: Tensor, scale: int) -> Sequence[Tensor]:
        """Images, so many at a time that they have at most :data:`PIXELS` when enlarged ``scale`` times."""
        return images.split(max(1, PIXELS // (images[0, 0].numel() * scale**2)))

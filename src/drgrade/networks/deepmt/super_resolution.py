"""Super-resolution of DeepMT-DR, the baseline by bicubic interpolation, and their signal-to-noise ratio."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.networks.deepmt.recompute import recomputed

SMALL = 0.1
"""Size of the branches of residual blocks at first, relative to He initialisation."""
Output = Literal["residual", "tanh"]
"""What the last convolution gives; see :class:`SuperResolution`."""


def shrink(images: Tensor, scale: int) -> Tensor:
    """Low-resolution images (B, 3, H / scale, W / scale) of images (B, 3, H, W), by area averaging."""
    return F.avg_pool2d(images, scale)


def bicubic(images: Tensor, scale: int) -> Tensor:
    """Images (B, 3, h, w) in 0-1, enlarged by bicubic interpolation; float32, clamped to 0-1."""
    return _bicubic(images, scale).clamp(0, 1)


def _bicubic(images: Tensor, scale: int) -> Tensor:
    return F.interpolate(images.float(), scale_factor=scale, mode="bicubic", align_corners=False)


def psnr(errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of images in 0-1; 100 at most."""
    return -10 * torch.log10(errors.clamp(min=1e-10))


class Bicubic(nn.Module):
    """Bicubic interpolation in place of a super-resolution network."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """See :func:`bicubic`."""
        return bicubic(images, self.scale)


class Residual(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between them, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        branch: Tensor = self.second(F.leaky_relu(self.first(maps)))
        return maps + branch


class SuperResolution(nn.Module):
    """Enlarges images (B, 3, h, w) in 0-1 to float32 images (B, 3, scale * h, scale * w) in 0-1.

    Feature extraction at low resolution, then one transposed convolution for each doubling, as in the paper;
    layers are those of the authors' code.

    Args:
        scale: 2, 4 or 8.
        width: channels, published: 32.
        blocks: residual blocks, published: 5.
        output: ``tanh``: (tanh(x) + 1) / 2, as published. ``residual``: x is added to the bicubic enlargement
            and the sum clamped to 0-1; x is 0 at first, so that training begins at the bicubic enlargement
            (VDSR, Kim et al., CVPR 2016).
        checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        scale: int,
        width: int = 32,
        blocks: int = 5,
        output: Output = "residual",
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.output, self.checkpointing = scale, output, checkpointing
        self.extract = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(), *(Residual(width) for _ in range(blocks))
        )
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1), nn.LeakyReLU()
            )
            for _ in range(scale.bit_length() - 1)
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation, with which activations keep their size; torch's default lets them fade.

        The branches of residual blocks start small, and ``residual`` output starts at 0.
        """
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):  # a position is reached by 9 / 4 of the kernel
                nn.init.normal_(module.weight, std=math.sqrt(8 / 9 / module.in_channels))
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Residual):
                module.second.weight.data.mul_(SMALL)
        if self.output == "residual":
            nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarged images."""
        maps = images
        for part in (self.extract, *self.enlarge, self.last):
            maps = recomputed(part, maps) if self.checkpointing and self.training else part(maps)
        maps = maps.float()  # the steps of bfloat16 near 1 would be as coarse as those of 8 bits
        if self.output == "tanh":
            return (maps.tanh() + 1) / 2
        return (_bicubic(images, self.scale) + maps).clamp(0, 1)

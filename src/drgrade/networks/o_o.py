"""The networks of o_O, second place in Kaggle's Diabetic Retinopathy Detection (2015), and those of RAM.

Importing this module registers with timm:

- ``o_o_{128,256,512}_{5x5,4x4}``: o_O's trunks, pooled by root mean square (RMS); the head is
  :class:`MaxoutHead`.
- ``o_o_ram_{128,256,512}_{5x5,4x4}``: the same with global average pooling, for regression activation maps
  (RAM; Wang and Yang, arXiv 1703.10757). With a linear unit of weights w and bias b as head, the mean of the
  map ``sum_k w_k * feature_k`` plus b is the score.
- ``o_o_ram_{128,256,512}_5x5_hires``: average pooling over maps of 54 or 56 positions a side.

The number is the side of the images in pixels. A network cuts the outer sixteenth off each side and sees
the central 87.5 %. Networks of one kernel size begin with the same convolutions, so weights trained at
128 pixels start the training at 256, and those at 512 (:func:`copy_trunk`).

Deviations from the published code: images are not transposed. With ``tied_biases`` images may have any
size; then the windows of the RMS pooling grow with the map, and the number of features stays. The layouts
of the high-resolution networks are not fully published. Here the 128 px one has convolutions of stride 1
and a second max-pool of stride 1, padded by 1; the 256 px one has a first convolution of stride 1 and only
the first max-pool; the 512 px one has only the first max-pool.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from drgrade.errors import UserError
from drgrade.networks.registered import register

MEAN = (108.64628601, 75.86886597, 54.34005737)
"""Mean of o_O's training images (RGB, 0-255), black borders included."""
STD = (70.53946096, 51.71475228, 43.03428563)
"""Their standard deviation."""
BIAS = 0.05
"""Initial biases of convolutions and of the head's hidden layers."""


class Conv(NamedTuple):
    """A convolution; ``width`` is its output channels as a multiple of the first convolution's."""

    width: int
    kernel: int
    padding: int
    stride: int = 1


class Pool(NamedTuple):
    """A max-pool."""

    kernel: int = 3
    padding: int = 0
    stride: int = 2


class Architecture(NamedTuple):
    """A network's layout.

    Attributes:
        size: side of its images in pixels.
        layers: convolutions and max-pools in order.
        grid: cells a side of the final RMS pooling, or None for global average pooling.
        channels: output channels of the first convolution.
    """

    size: int
    layers: tuple[Conv | Pool, ...]
    grid: int | None = None
    channels: int = 32


POOL = Pool()
NET_5X5: tuple[Conv | Pool, ...] = (
    Conv(1, 5, 2, stride=2), Conv(1, 3, 1), POOL,
    Conv(2, 5, 2, stride=2), Conv(2, 3, 1), Conv(2, 3, 1), POOL,
    Conv(4, 3, 1), Conv(4, 3, 1), Conv(4, 3, 1), POOL,
    Conv(8, 3, 1), Conv(8, 3, 1), Conv(8, 3, 1), POOL,
    Conv(16, 3, 1), Conv(16, 3, 1),
)  # fmt: skip
NET_4X4: tuple[Conv | Pool, ...] = (  # an even kernel shrinks a map by 1, then grows it by 1
    Conv(1, 4, 1, stride=2), Conv(1, 4, 2), POOL,
    Conv(2, 4, 1, stride=2), Conv(2, 4, 2), Conv(2, 4, 1), POOL,
    Conv(4, 4, 2), Conv(4, 4, 1), Conv(4, 4, 2), POOL,
    Conv(8, 4, 2), Conv(8, 4, 1), Conv(8, 4, 2), POOL,
    Conv(16, 4, 1),
)  # fmt: skip
RAM_5X5 = (Conv(1, 5, 1, stride=2), *NET_5X5[1:3], Conv(2, 5, 1, stride=2), *NET_5X5[4:])
HIRES_128 = (
    Conv(1, 5, 1), Conv(1, 3, 1), POOL,
    Conv(2, 5, 2), Conv(2, 3, 1), Conv(2, 3, 1), Pool(stride=1, padding=1),
    Conv(4, 3, 1), Conv(4, 3, 1), Conv(4, 3, 1),
)  # fmt: skip
HIRES_512 = (*NET_5X5[:6], *(layer for layer in NET_5X5[6:] if isinstance(layer, Conv)))
HIRES_256 = (Conv(1, 5, 2), *HIRES_512[1:12])
UP_TO_128, UP_TO_256 = 10, 14
"""Layers of the networks for 128 and 256 pixels: the final pooling replaces their last max-pool."""

ARCHITECTURES = {
    "o_o_128_5x5": Architecture(128, NET_5X5[:UP_TO_128], grid=2),
    "o_o_128_4x4": Architecture(128, NET_4X4[:UP_TO_128], grid=3),
    "o_o_256_5x5": Architecture(256, NET_5X5[:UP_TO_256], grid=2),
    "o_o_256_4x4": Architecture(256, NET_4X4[:UP_TO_256], grid=3),
    "o_o_512_5x5": Architecture(512, NET_5X5, grid=2),
    "o_o_512_4x4": Architecture(512, NET_4X4, grid=2),
    "o_o_ram_128_5x5": Architecture(128, RAM_5X5[:UP_TO_128]),
    "o_o_ram_128_4x4": Architecture(128, NET_4X4[:UP_TO_128]),
    "o_o_ram_256_5x5": Architecture(256, RAM_5X5[:UP_TO_256]),
    "o_o_ram_256_4x4": Architecture(256, NET_4X4[:UP_TO_256]),
    "o_o_ram_512_5x5": Architecture(512, RAM_5X5),
    "o_o_ram_512_4x4": Architecture(512, NET_4X4),
    "o_o_ram_128_5x5_hires": Architecture(128, HIRES_128),
    "o_o_ram_256_5x5_hires": Architecture(256, HIRES_256, channels=16),
    "o_o_ram_512_5x5_hires": Architecture(512, HIRES_512, channels=16),
}
"""Layouts by timm name."""


class ConvLayer(nn.Conv2d):
    """Convolution, bias, leaky ReLU and optional batch normalisation, in this order.

    Args:
        fan_in: input channels.
        width: output channels.
        shape: kernel, padding and stride.
        side: side of the output map, for a bias at each of its positions; None for one bias per channel.
        leak: slope of the activation below 0.
        batch_norm: whether to normalise the activations.
    """

    def __init__(
        self, fan_in: int, width: int, shape: Conv, *, side: int | None, leak: float, batch_norm: bool
    ) -> None:
        super().__init__(fan_in, width, shape.kernel, shape.stride, shape.padding, bias=side is None)
        self.leak = leak
        self.untied = side is not None
        if side is not None:
            # four dimensions, so that channels-last networks store it like the map it is added to
            self.bias = nn.Parameter(torch.full((1, width, side, side), BIAS))
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()

    def reset_parameters(self) -> None:
        """Orthogonal weights over the flattened fan-in, and biases of 0.05."""
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.constant_(self.bias, BIAS)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (B, width, h, w)."""
        if self.untied:
            # in place, the sum keeps the type of autocast and no second map is written
            x = self._conv_forward(x, self.weight, None).add_(self.bias)
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        activations: Tensor = self.norm(F.leaky_relu(x, self.leak, inplace=True))
        return activations


class Encoder(nn.Module):
    """A network of o_O or RAM without its head, by its layout; see the module's docstring.

    Args:
        architecture: its layout.
        num_classes: 0, as there is no classifier.
        tied_biases: one bias per channel, not one per channel and position; then images may have any size.
        batch_norm: normalise the input and the activations of all convolutions but the last, as RAM does.
        leak: slope of the leaky ReLU. With 0.01 the networks for 512 pixels need pretraining at 128 and
            256, with 0.33 they do not.
        channels: output channels of the first convolution; None for the published number.

    Attributes:
        num_features: number of features D.
        crop_pct: share of each side that the network sees.

    Raises:
        ValueError: ``num_classes`` is not 0.
    """

    crop_pct = 0.875

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int = 0,
        tied_biases: bool = False,
        batch_norm: bool = False,
        leak: float = 0.01,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes:
            raise ValueError(f"num_classes must be 0, not {num_classes}: o_O's networks have no classifier")
        self.num_classes = num_classes
        self.size, self.grid = architecture.size, architecture.grid
        self.tied_biases = tied_biases
        first = channels or architecture.channels
        seen = self.size - 2 * self.margin(self.size)
        self.trunk = _trunk(architecture.layers, first, seen, tied_biases, batch_norm, leak)
        widths = [first * layer.width for layer in architecture.layers if isinstance(layer, Conv)]
        self.num_features = widths[-1] * (self.grid or 1) ** 2

    @staticmethod
    def margin(size: int) -> int:
        """Pixels that are cut off both ends of a side of ``size`` pixels."""
        return size // 16

    def forward_features(self, x: Tensor) -> Tensor:
        """The last convolution's activations (B, C, h, w) for normalised images (B, 3, H, W).

        They cover the images without their margins.

        Raises:
            RuntimeError: images of another size than the biases are for, or too small.
        """
        height, width = x.shape[-2:]
        if not self.tied_biases and (height, width) != (self.size, self.size):
            raise RuntimeError(f"untied biases need {self.size} pixels; set tied_biases for other sizes")
        top, left = self.margin(height), self.margin(width)
        maps: Tensor = self.trunk(x[..., top : height - top, left : width - left])
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """Pooled features (B, D) of activations (B, C, h, w); ``pre_logits`` changes nothing."""
        pooled = x.mean((2, 3)) if self.grid is None else rms_pool(x, self.grid).flatten(1)
        return pooled.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


def _trunk(
    layers: tuple[Conv | Pool, ...], first: int, side: int, tied_biases: bool, batch_norm: bool, leak: float
) -> nn.Sequential:
    """Input norm, ``conv1``, ``conv2``, ``pool2``, ... for images of ``side`` pixels."""
    trunk = nn.Sequential()
    trunk.add_module("norm", nn.BatchNorm2d(3) if batch_norm else nn.Identity())
    convolutions = sum(isinstance(layer, Conv) for layer in layers)
    number, fan_in = 0, 3
    for layer in layers:
        side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        if isinstance(layer, Pool):
            trunk.add_module(f"pool{number}", nn.MaxPool2d(layer.kernel, layer.stride, layer.padding))
            continue
        number += 1
        width = first * layer.width
        convolution = ConvLayer(
            fan_in,
            width,
            layer,
            side=None if tied_biases else side,
            leak=leak,
            batch_norm=batch_norm and number < convolutions,
        )
        trunk.add_module(f"conv{number}", convolution)
        fan_in = width
    return trunk


def rms_pool(x: Tensor, grid: int) -> Tensor:
    """Root mean square of ``grid`` x ``grid`` windows of equal size.

    For maps of 6 positions and grid 2, windows are 3 x 3 with stride 3; for 7 and 3, or 5 and 2, they are
    3 x 3 with stride 2: o_O's pooling.

    Args:
        x: maps (B, C, h, w); h and w at least ``grid``.
        grid: windows a side.

    Returns:
        (B, C, grid, grid), float32 unless ``x`` is float64. The gradient is finite also where all are 0.
    """
    strides = [side // grid for side in x.shape[-2:]]
    kernel = [side - (grid - 1) * stride for side, stride in zip(x.shape[-2:], strides, strict=True)]
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()  # 16 bits lose or overflow them
    return (F.avg_pool2d(squares, kernel, strides) + 1e-12).sqrt()


def maxout(x: Tensor) -> Tensor:
    """Maxima of the adjacent pairs (2j, 2j + 1) of the last dimension: (..., 2n) to (..., n)."""
    return x.unflatten(-1, (-1, 2)).amax(-1)


class MaxoutHead(nn.Module):
    """o_O's head: twice dropout, a dense layer, leaky ReLU and maxout; then one unit.

    Args:
        features: number of features D of the encoder.
        linear_output: leave out the final ReLU, below which there is no gradient. o_O has it.
    """

    def __init__(self, features: int, *, linear_output: bool = False) -> None:
        super().__init__()
        self.linear_output = linear_output
        self.dropout = nn.Dropout(0.5)
        self.dense1, self.dense2 = nn.Linear(features, 1024), nn.Linear(512, 1024)
        self.output = nn.Linear(512, 1)
        for dense in (self.dense1, self.dense2):
            nn.init.orthogonal_(dense.weight)
            nn.init.constant_(dense.bias, BIAS)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, 1) of features (B, D): about 0-4, at least 0 unless ``linear_output``."""
        x = features
        for dense in (self.dense1, self.dense2):
            x = maxout(F.leaky_relu(dense(self.dropout(x)), 0.01, inplace=True))
        score: Tensor = self.output(x)
        return score if self.linear_output else score.relu()


@torch.no_grad()
def copy_trunk(
    target: nn.Module, tensors: Mapping[str, Tensor], *, interpolate_biases: bool = False
) -> tuple[list[str], list[str]]:
    """Copy the convolutions that a trained network shares with another: o_O's progressive pretraining.

    These are the first ones, as long as their weights have the same shape. Their tied biases and batch
    normalisation are copied too, where both networks have them; a head never is.

    Args:
        target: an o_O network, or a network with one as its ``encoder``; changed in place.
        tensors: state dict of the trained network; names may begin with ``encoder.``.
        interpolate_biases: copy untied biases too, resampled bilinearly to the size of the target's maps.
            In o_O they start anew.

    Returns:
        Names of the encoder's tensors that were copied, and of those that were not.

    Raises:
        UserError: ``target`` is no o_O network, or no convolution fits.
    """
    encoder = getattr(target, "encoder", target)
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"encoder: a trunk is copied into o_O networks such as o_o_512_5x5, not {type(encoder).__name__}"
        )
    source = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    own = encoder.state_dict()
    shared = _shared(own, source)
    copied: list[str] = []
    for name, tensor in own.items():
        found = source.get(name)
        if found is None or not name.startswith(shared):
            continue
        if tensor.ndim == found.ndim == 4 and name.endswith(".bias"):
            if not interpolate_biases:
                continue
            found = F.interpolate(found, tensor.shape[-2:], mode="bilinear", align_corners=False)
        if tensor.shape == found.shape:
            tensor.copy_(found)
            copied.append(name)
    return copied, [name for name in own if name not in copied]


def _shared(own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Prefixes of the tensors of the layers that two trunks have in common."""
    weights = [name for name in own if re.fullmatch(r"trunk\.conv\d+\.weight", name)]
    shared = ["trunk.norm."]
    for name in weights:
        if name not in source or source[name].shape != own[name].shape:
            break
        shared.append(name.removesuffix("weight"))
    if len(shared) > 1:
        return tuple(shared)
    first = weights[0]
    found = f"is {tuple(source[first].shape)}" if first in source else "is missing"
    raise UserError(
        f"start weights: {first} {found}, expected {tuple(own[first].shape)}; take a model of an o_O network "
        "with the same kernel size and channels"
    )


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 0,
            "input_size": (3, architecture.size, architecture.size),
            "crop_pct": 1.0,  # the network crops
            "mean": tuple(value / 255 for value in MEAN),
            "std": tuple(value / 255 for value in STD),
            "first_conv": "trunk.conv1",
        }
        for name, architecture in ARCHITECTURES.items()
    }
)
"""Where timm looks for normalisation and image size."""

register(Encoder, ARCHITECTURES, "it has no feature pyramid, as it crops its images")

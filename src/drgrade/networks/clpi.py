"""The networks of CLPI: a lesion network whose maps weight the input of a grading network.

Importing this module registers with timm ``clpi_densenet121``, ``_densenet161``, ``_densenet169``,
``_densenet201`` and ``_densenet264``. They take images (B, 3, S, S) in 0-1; S is a multiple of 64, and 1024
in the publication.

1. :class:`LesionNet` gives each cell of 64 x 64 pixels the probabilities of being normal and of showing each
   of three classes of lesion. A patch of 64 x 64 pixels is one cell, so the network learns from patches and
   is applied to whole images with the same weights.
2. The image at half the size is multiplied by 1 + m for each of the four probability maps m. The 12 channels
   are the input of a DenseNet.
3. The map of all lesions, 1 - P(normal), is added to the DenseNet's feature map as a channel, and a 1 x 1
   convolution mixes all channels.

Source: Yang et al., IEEE Transactions on Cybernetics 2021, doi 10.1109/TCYB.2021.3062638; layers as in the
released code. Deviation: images and maps are resized by their areas, not by the centres of corner pixels;
``align_corners`` resizes as published.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from timm.models import generate_default_cfgs
from timm.models.densenet import DenseNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from drgrade.errors import UserError
from drgrade.networks.registered import register

CELL = 64
"""Side of a cell of the lesion maps in input pixels, and of a patch."""
CLASSES = 4
"""Classes of a cell: normal, and three of lesions."""
FEATURES = 1024
"""Channels of the feature map that the grade is read from."""
AT_ONCE = 4 * 1024**2
"""Pixels of a batch that are processed at once where no gradient is needed: the lesion network's first maps
have 32 channels at full resolution."""
DENSENET = "features."
"""Prefix of the trunk's tensors in weights of timm's and torchvision's DenseNets."""


class Conv(NamedTuple):
    """A convolution of the lesion network."""

    channels: int
    kernel: int
    stride: int
    padding: int


LESION_LAYERS = (
    Conv(32, 5, 1, 2), Conv(32, 2, 2, 0), Conv(64, 2, 2, 0), Conv(128, 2, 2, 0), Conv(256, 2, 2, 0),
    Conv(512, 2, 2, 0), Conv(1024, 2, 2, 0), Conv(1024, 1, 1, 0), Conv(1024, 1, 1, 0),
)  # fmt: skip


class Architecture(NamedTuple):
    """Layout of a DenseNet: the growth rate and the number of layers of each block."""

    growth: int
    blocks: tuple[int, int, int, int]


ARCHITECTURES = {
    "clpi_densenet121": Architecture(32, (6, 12, 24, 16)),
    "clpi_densenet161": Architecture(48, (6, 12, 36, 24)),
    "clpi_densenet169": Architecture(32, (6, 12, 32, 32)),
    "clpi_densenet201": Architecture(32, (6, 12, 48, 32)),
    "clpi_densenet264": Architecture(32, (6, 12, 64, 48)),
}
"""Layouts by timm name."""


class LesionLayer(nn.Module):
    """Convolution without bias, batch normalisation and Mish.

    Args:
        fan_in: input channels.
        shape: the convolution.
    """

    def __init__(self, fan_in: int, shape: Conv) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, shape.channels, shape.kernel, shape.stride, shape.padding, bias=False)
        self.norm = nn.BatchNorm2d(shape.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (B, channels, h, w)."""
        return F.mish(self.norm(self.conv(x)))


class LesionNet(nn.Module):
    """Classifies the cells of an image, or patches: 4,909,408 parameters, no pooling.

    Args:
        recompute: compute the activations of each layer again in the backward pass, which saves memory.
    """

    def __init__(self, *, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        widths = [3, *(layer.channels for layer in LESION_LAYERS)]
        self.layers = nn.ModuleList(map(LesionLayer, widths[:-1], LESION_LAYERS))
        self.head = nn.Conv2d(widths[-1], CLASSES, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 4, H / 64, W / 64) of images (B, 3, H, W) in 0-1."""
        for layer in self.layers:
            again = self.recompute and self.training and torch.is_grad_enabled()
            x = _checkpointed(layer, x) if again else layer(x)
        logits: Tensor = self.head(x)
        return logits

    def maps(self, x: Tensor) -> Tensor:
        """Probabilities (B, 4, H / 64, W / 64) of the classes, float32; they sum to 1 in each cell."""
        return self(x).float().softmax(dim=1)


def _checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a layer without storing its activations."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(layer)

    found: Tensor = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
    return found


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Context manager: a second pass over the same batch does not move the running statistics again."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Encoder(nn.Module):
    """CLPI's network without its last linear layer; see the module's docstring.

    Args:
        architecture: layout of the DenseNet.
        num_classes: 0, as there is no classifier.
        attention: multiply the image by 1 + m for each lesion map m; without, it is repeated four times.
        attn_stopgrad: grades do not train the lesion network through these products, as in the released code.
        fusion: add the map of all lesions to the feature map.
        align_corners: resize as the released code does, so that the centres of the corner pixels coincide.
            The weights of a cell are then up to half a cell away from its pixels.
        recompute: see :class:`LesionNet`.

    Attributes:
        num_features: number of features D, 1024.

    Raises:
        ValueError: ``num_classes`` is not 0.
    """

    num_features = FEATURES

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int = 0,
        attention: bool = True,
        attn_stopgrad: bool = True,
        fusion: bool = True,
        align_corners: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if num_classes:
            raise ValueError(f"num_classes must be 0, not {num_classes}: CLPI's encoders have no classifier")
        self.num_classes = num_classes
        self.attention, self.attn_stopgrad = attention, attn_stopgrad
        self.fusion, self.align_corners = fusion, align_corners
        self.lesions = LesionNet(recompute=recompute)
        dense = DenseNet(*architecture, num_classes=0, in_chans=3 * CLASSES)
        self.trunk = dense.features
        mix = nn.Conv2d(dense.num_features + fusion, FEATURES, 1, bias=False)
        nn.init.kaiming_normal_(mix.weight)
        self.mix = nn.Sequential(OrderedDict(conv=mix, norm=nn.BatchNorm2d(FEATURES), act=nn.ReLU()))

    def attended(self, x: Tensor, maps: Tensor) -> Tensor:
        """The DenseNet's input (B, 12, S / 2, S / 2): three channels for each lesion map.

        Args:
            x: images (B, 3, S, S).
            maps: (B, 4, S / 64, S / 64) in 0-1.
        """
        side = x.shape[-1] // 2
        image = F.interpolate(x, (side, side), mode="bilinear", align_corners=self.align_corners)
        if not self.attention:
            return image.repeat(1, CLASSES, 1, 1)
        gain = 1 + enlarged(maps, side, align_corners=self.align_corners)
        weighted = (image[:, None] * gain[:, :, None]).flatten(1, 2)
        return weighted.detach() if self.attn_stopgrad else weighted

    def forward_with_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, 1024, S / 64, S / 64) and lesion maps (B, 4, S / 64, S / 64) of images.

        Raises:
            RuntimeError: the side of the images is not a multiple of 64 pixels.
        """
        if x.shape[-1] % CELL or x.shape[-2] != x.shape[-1]:
            raise RuntimeError(f"CLPI needs square images with a side that is a multiple of {CELL} pixels")
        if self.training or torch.is_grad_enabled():  # batch normalisation and heat maps need it as a whole
            return self._forward(x)
        features, maps = zip(*map(self._forward, _parts(x)), strict=True)
        return torch.cat(features), torch.cat(maps)

    @torch.no_grad()
    def lesion_map(self, x: Tensor) -> Tensor:
        """Probability of a lesion in each cell, 1 - P(normal): float32 (B, S / 64, S / 64)."""
        return torch.cat([1 - self.lesions.maps(part)[:, 0] for part in _parts(x)])

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.lesions.maps(x)
        features = self.trunk(self.attended(x, maps))
        if self.fusion:
            features = torch.cat([features, 1 - maps[:, :1].to(features.dtype)], dim=1)
        return self.mix(features), maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (B, 1024, S / 64, S / 64) of images (B, 3, S, S) in 0-1."""
        return self.forward_with_maps(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        """Pooled features (B, 1024) of feature maps; ``pre_logits`` changes nothing."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, 1024) of images (B, 3, S, S) in 0-1."""
        return self.forward_head(self.forward_features(x))


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Images, so many at a time that they have at most :data:`AT_ONCE` pixels."""
    return x.split(max(1, AT_ONCE // x.shape[-1] ** 2))


def enlarged(maps: Tensor, side: int, *, align_corners: bool = False) -> Tensor:
    """Lesion maps at another size, (B, 4, side, side), by the nearest cell.

    Args:
        maps: (B, 4, h, h).
        side: a multiple of h.
        align_corners: pixel i takes cell round(i (h - 1) / (side - 1)), as Paddle does unless told otherwise;
            else the cell that it lies in.
    """
    cells = maps.shape[-1]
    if not align_corners:
        return F.interpolate(maps, (side, side), mode="nearest")
    nearest = np.floor(np.arange(side) * ((cells - 1) / (side - 1)) + 0.5).astype(np.int64)
    chosen = torch.from_numpy(nearest).to(maps.device)
    return maps.index_select(2, chosen).index_select(3, chosen)


@torch.no_grad()
def load_densenet(encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
    """Copy the weights of a three-channel DenseNet, such as one trained on ImageNet, into the trunk.

    The first convolution is repeated for the four weighted images and divided by 5. As the maps of a cell sum
    to 1, the four weights 1 + m sum to 5, and the network begins with the responses to the plain image.

    Args:
        encoder: changed in place.
        tensors: state dict of timm's or torchvision's DenseNet of the same layout.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    own = encoder.trunk.state_dict()
    found = {
        name.removeprefix(DENSENET): value for name, value in tensors.items() if name.startswith(DENSENET)
    }
    first = found.get("conv0.weight")
    if first is not None:
        found["conv0.weight"] = first.repeat(1, CLASSES, 1, 1) / (CLASSES + 1)
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)
    wrong = sorted(own.keys() ^ found.keys()) or [n for n in own if own[n].shape != found[n].shape]
    if wrong:
        raise UserError(f"{DENSENET}{wrong[0]} does not fit; take weights of the DenseNet that encoder names")
    encoder.trunk.load_state_dict(found)


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 0,
            "input_size": (3, 1024, 1024),
            "crop_pct": 1.0,
            "mean": (0.0, 0.0, 0.0),  # the images are divided by 255 only
            "std": (1.0, 1.0, 1.0),
            "first_conv": "lesions.layers.0.conv",
        }
        for name in ARCHITECTURES
    }
)
"""Where timm looks for normalisation and image size."""

register(Encoder, ARCHITECTURES, "it has no feature pyramid")

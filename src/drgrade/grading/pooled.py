"""Features of several layers of a frozen encoder, pooled over the image in several ways.

A network's last layer describes the images that it was trained on. Lesions are small and of few kinds, and
layers before the last one tell of them too.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.grading.features import Frozen

SHARE = 50
"""``top`` and ``bottom`` are means over one in this many positions, at least one."""
GEM = 3.0
"""Exponent of the generalised mean (Radenovic et al., arXiv 1711.02512)."""


def top(responses: Tensor) -> Tensor:
    """Mean of the highest 2 % of the responses (B, D, N): (B, D)."""
    return responses.topk(max(1, responses.shape[2] // SHARE), dim=2).values.mean(2)


def gem(responses: Tensor) -> Tensor:
    """Generalised mean of the positive part of the responses (B, D, N): (B, D)."""
    return responses.clamp(min=1e-6).pow(GEM).mean(2).pow(1 / GEM)


POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda responses: responses.mean(2),
    "std": lambda responses: responses.std(2, unbiased=False),
    "max": lambda responses: responses.amax(2),
    "gem": gem,
    "top": top,
    "bottom": lambda responses: -top(-responses),
}
"""Functions from responses (B, D, N) at N positions to (B, D)."""


class PooledLayers(nn.Module):
    """An encoder whose output is the pooled responses of several of its layers.

    Input: normalised images (B, 3, S, S). Output: (B, width): all poolings of the first layer, then those of
    the next.

    Args:
        encoder: a timm backbone.
        layers: numbers of its stages (convolutional networks) or blocks (vision transformers), counted from
            0, or from the end: -1 is the last one. Their order does not matter.
        pooling: names of :data:`POOLINGS`, or ``token``: the class token of a vision transformer.

    Raises:
        UserError: the encoder has no such layer, gives no layers, or has no class token.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[int], pooling: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.layers, self.pooling = encoder, list(layers), list(pooling)
        name = type(encoder).__name__
        if not hasattr(encoder, "forward_intermediates"):
            raise UserError(f"experiments.<name>.layers: timm's {name} gives no layers; take another encoder")
        if "token" in pooling and not getattr(encoder, "has_class_token", False):
            raise UserError(f"experiments.<name>.pooling: {name} has no class token; leave out token")

    def forward(self, batch: Tensor) -> Tensor:
        """Pooled responses (B, width)."""
        tokens = "token" in self.pooling
        options = {"return_prefix_tokens": True} if tokens else {}
        try:
            found = self.encoder.forward_intermediates(  # type: ignore[operator]
                batch, indices=self.layers, intermediates_only=True, output_fmt="NCHW", **options
            )
        except AssertionError as error:
            raise UserError(
                f"experiments.<name>.layers: {self.layers}: {error}; take layers of this encoder"
            ) from None
        pooled = []
        for layer in found:
            flat = (layer[0] if tokens else layer).flatten(2).float()
            pooled += [layer[1][:, 0] if name == "token" else POOLINGS[name](flat) for name in self.pooling]
        return torch.cat(pooled, dim=1)


class FrozenRegression(nn.Module):
    """A frozen encoder and one linear unit on its features.

    Input: normalised images (B, 3, S, S). Output: scores (B,), unbounded, about 0-4.

    Args:
        encoder: its features have the shape (B, width).
    """

    def __init__(self, encoder: Frozen) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, 1)

    def forward(self, batch: Tensor) -> Tensor:
        """Scores (B,)."""
        scores: Tensor = self.head(self.encoder(batch)).squeeze(1)
        return scores

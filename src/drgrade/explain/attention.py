"""Attention of the class token in a vision transformer's last block (Caron et al., DINO, ICCV 2021).

It shows what the encoder gathers into its class token, whatever the grade is. If the grader averages the
other tokens instead, the class token does not reach the grade at all.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Heat, Values, encoder_of, outputs_of, over_input, scaled


@EXPLAINERS.register("attention")
class ClassAttention:
    """Attention weights of the class token on the image's patches: the mean over heads, and each head."""

    def heat(self, model: nn.Module, batch: Tensor) -> Heat:
        """Return heat maps (B, H, W) of normalised images (B, 3, H, W): the mean over heads, each divided by
        its maximum.

        Raises:
            UserError: see :meth:`heads`.
        """
        return over_input(scaled(self.heads(model, batch).mean(axis=1)), model, batch.shape[-1])

    @torch.no_grad()
    def heads(self, model: nn.Module, batch: Tensor) -> Values:
        """Return the attention weights (B, K, h, w) of the K heads on the patches, for normalised images
        (B, 3, H, W).

        The weights of a head sum to 1 with those on the class token itself and on register tokens, which are
        left out. Puts the model in evaluation mode.

        Raises:
            UserError: the network has no attention, or no class token.
        """
        model.eval()
        encoder = encoder_of(model)
        attention, maps = last_attention(encoder), []
        with softmax_of(attention) as found:
            for image in batch.split(1):  # the weights of all pairs of tokens need much memory
                model(image)
                weights = found.pop()[:, :, 0, encoder.num_prefix_tokens :]
                maps.append(in_grid(weights, encoder).float().cpu().numpy())
        return np.concatenate(maps)


def last_attention(encoder: Any) -> Any:
    """Return the attention module of the last block of a timm vision transformer.

    Raises:
        UserError: there is none, or the encoder has no class token.
    """
    blocks = getattr(encoder, "blocks", None)
    last = blocks[-1] if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    attention = getattr(last, "attn", None)
    if not (hasattr(attention, "fused_attn") and hasattr(attention, "attn_drop")):
        raise refusal(f"{type(encoder).__name__} has no attention blocks")
    if getattr(encoder, "cls_token", None) is None:
        raise refusal(f"this {type(encoder).__name__} has no class token")
    return attention


@contextmanager
def softmax_of(attention: Any) -> Iterator[list[Tensor]]:
    """Context manager: its list receives the weights (B, K, N, N) of a timm attention module, after softmax.

    PyTorch's fused attention never holds them, so the module works without it meanwhile.
    """
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        with outputs_of([attention.attn_drop]) as found:  # dropout does nothing in evaluation mode
            yield found
    finally:
        attention.fused_attn = fused


def in_grid(weights: Tensor, encoder: nn.Module) -> Tensor:
    """Arrange values of patches (B, K, h * h) in their square grid (B, K, h, h).

    Raises:
        UserError: the patches have no square grid.
    """
    side = math.isqrt(weights.shape[-1])
    if side**2 != weights.shape[-1]:
        raise refusal(f"the {weights.shape[-1]} patches of {type(encoder).__name__} form no square")
    return weights.unflatten(-1, (side, side))


def refusal(reason: str) -> UserError:
    """Return the error for a network without such attention."""
    return UserError(
        "explanations.<name>.method: attention needs a vision transformer with a class token, but "
        f"{reason}; use cam, or explain another experiment"
    )

"""Detectors in mixed precision: backbone and neck in 16 bits; heads, losses and boxes in 32.

MMDetection's own mixed precision runs all of the network in 16 bits. Heads place their boxes by a grid of
points in the type of what they are given, and bfloat16 tells 256 from 258 but not from 257.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import AmpOptimWrapper
from torch import nn


def half_features(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a detector's backbone and neck run in a 16-bit type from now on; its weights stay float32.

    Args:
        model: of MMDetection. Do not copy it afterwards: the copy would run this one's backbone.
        dtype: bfloat16 or float16.
    """
    extract: Any = model.extract_feat

    def features(inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(inputs.device.type, dtype):
            levels = extract(inputs)
        return tuple(level.float() for level in levels)

    model.extract_feat = features  # type: ignore[assignment]


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(AmpOptimWrapper):
    """Scales the loss for gradients of float16, whose small values would vanish, and casts nothing."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As without mixed precision: :func:`half_features` casts what is to be cast."""
        with super(AmpOptimWrapper, self).optim_context(model):
            yield

"""Mixed precision for detectors: backbone and neck in 16 bits; heads, losses and boxes in 32.

MMDetection's own mixed precision runs the whole network in 16 bits. Detection heads then compute the grid
points of their boxes in the dtype of their input features, and bfloat16 cannot represent 257 (only 256, 258).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import AmpOptimWrapper
from torch import nn


def half_features(model: nn.Module, dtype: torch.dtype) -> None:
    """Run a detector's backbone and neck under autocast from now on; its weights stay float32.

    Args:
        model: an MMDetection model, changed in place. Do not deep-copy it afterwards: the copy would still
            call the backbone of the original.
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
    """Optimizer wrapper that scales the loss, so that small float16 gradients do not underflow.

    Unlike its base class it does not autocast the forward pass.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Same context as without mixed precision: :func:`half_features` does the casting."""
        with super(AmpOptimWrapper, self).optim_context(model):
            yield

"""GMSV, gradient-weighted multi-scale visualisation (Wang et al., AAAI 2021, algorithm 1): evidence maps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

STAGES = 4
"""Feature maps that are merged: of a network's last four stages, a quarter to a 32nd of its input's side."""


def gmsv(maps: Sequence[Tensor], target: Tensor, *, create_graph: bool = False) -> Tensor:
    """Merge feature maps, weighted by the gradient of a target, from the deepest to the shallowest.

    With the weight w_ij of channel i of map j, the mean over positions of the gradient of the target, the
    evidence of a map is V_j = sum_i w_ij F_ij. Each coarser result is enlarged and added to the next finer
    evidence, which is weighted by sum_i w_ij. Maps of images do not depend on each other, provided that the
    network normalises each image on its own (BatchNorm in evaluation mode).

    Args:
        maps: feature maps (B, C_j, h_j, w_j) of one forward pass, from the shallowest to the deepest.
        target: what is to be explained, (B,).
        create_graph: make the result differentiable with respect to all that ``maps`` depend on.

    Returns:
        (B, h_1, w_1), at least float32, unbounded; see :func:`unit_range`.
    """
    gradients = torch.autograd.grad(target.sum(), maps, create_graph=create_graph)
    merged: Tensor | None = None
    for features, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        weights = _full(gradient).mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        own = (weights * _full(features)).sum(dim=1, keepdim=True)
        if merged is None:
            merged = own
            continue
        coarser = F.interpolate(merged, size=own.shape[-2:], mode="bilinear", align_corners=False)
        merged = coarser + weights.sum(dim=1, keepdim=True) * own
    assert merged is not None
    return merged.squeeze(1)


def unit_range(maps: Tensor) -> Tensor:
    """Evidence for disease (B, h, w) in 0-1: negative values become 0, then each map is stretched to 0-1.

    A constant map becomes 0. Differentiable; source: the authors' code.
    """
    positive = maps.relu()
    low, high = positive.amin(dim=(1, 2), keepdim=True), positive.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return (positive - low) / torch.where(span > 0, span, 1.0)


def _full(values: Tensor) -> Tensor:
    """Values in at least single precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

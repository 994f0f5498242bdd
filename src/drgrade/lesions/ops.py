"""Replace mmcv's compiled operators by those of torchvision and PyTorch, so that MMDetection runs without.

mmcv's own operators take minutes to compile and need nvcc for CUDA. Every config in ``workflow/detectors``
runs without them, on CPU and CUDA: torchvision provides ``nms`` and ``roi_align``; the sigmoid focal loss
and multi-scale deformable attention, which mmcv calls on CUDA only, have PyTorch implementations. Call
:func:`install` before importing ``mmcv.ops``. A compiled ``mmcv._ext`` takes precedence.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torchvision.ops import sigmoid_focal_loss

NAME = "mmcv._ext"

STAND_INS = {
    "nms, batched_nms": "torchvision",
    "RoIAlign (average)": "torchvision",
    "sigmoid_focal_loss": "torchvision",
    "MultiScaleDeformableAttention": "PyTorch",
}
"""Operators available without a compiled ``mmcv._ext``, and the library that implements each."""


class MissingOpError(NotImplementedError):
    """An mmcv operator without a replacement in this module was called."""


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    """Return the indices of the boxes kept by non-maximum suppression, best score first.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: boxes whose IoU with a better box exceeds this are removed.
        offset: 0, or 1 for the old convention where a side is ``x2 - x1 + 1``.
    """
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    features: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    **options: Any,
) -> None:
    """Fill ``output`` (K, C, h, w) with the RoIAlign of ``features`` (B, C, H, W) over ``rois`` (K, 5)."""
    grid, sampling = _roi_align_options(**options)
    output.copy_(torch.ops.torchvision.roi_align(features, rois, *grid, *sampling))


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    **options: Any,
) -> None:
    """Fill ``grad_input`` (B, C, H, W) from ``grad_output`` (K, C, h, w)."""
    grid, sampling = _roi_align_options(**options)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad_output, rois, *grid, *grad_input.shape, *sampling)
    )


def _roi_align_options(
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> tuple[tuple[float, int, int], tuple[int, bool]]:
    """Convert mmcv's options to torchvision's arguments: those before and those after the feature shape."""
    if pool_mode != 1:
        raise MissingOpError("roi_align: max pooling needs mmcv's compiled operators (envs/ has a recipe)")
    return (spatial_scale, aligned_height, aligned_width), (sampling_ratio, aligned)


def sigmoid_focal_loss_forward(
    logits: torch.Tensor,
    classes: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``output`` (N, C) with the focal loss of ``logits`` (N, C) (Lin et al., 2017, equation 5).

    Args:
        logits: (N, C).
        classes: (N,), 0 to C; C is the background.
        weight: (C,) weight of a row by its class, the background has 1; or empty for all ones.
        output: (N, C), overwritten.
        gamma: focusing exponent; larger values weigh easy examples less.
        alpha: weight of the positive class, 0-1; negatives have ``1 - alpha``.
    """
    one_hot = torch.nn.functional.one_hot(classes, logits.shape[1] + 1).to(logits)
    loss = sigmoid_focal_loss(logits, one_hot[:, :-1], alpha=alpha, gamma=gamma, reduction="none")
    if weight.numel():
        loss = loss * torch.cat([weight, weight.new_ones(1)])[classes, None]
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    logits: torch.Tensor,
    classes: torch.Tensor,
    weight: torch.Tensor,
    grad_input: torch.Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Fill ``grad_input`` (N, C) with the derivative of each loss element by its logit."""
    with torch.enable_grad():
        variable = logits.detach().requires_grad_()
        loss = torch.zeros_like(variable)
        sigmoid_focal_loss_forward(variable, classes, weight, loss, gamma=gamma, alpha=alpha)
        grad_input.copy_(torch.autograd.grad(loss.sum(), variable)[0])


def ms_deform_attn_forward(
    value: torch.Tensor,
    shapes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    *,
    im2col_step: int,
) -> torch.Tensor:
    """Multi-scale deformable attention (Zhu et al., 2021, equation 3) by ``grid_sample``.

    Args:
        value: (B, keys, heads, D), the levels concatenated.
        shapes: (levels, 2), height and width of each level.
        starts: (levels,), index of each level's first key; unused, as it follows from ``shapes``.
        locations: (B, queries, heads, levels, points, 2), sampling points as x, y in 0-1.
        weights: (B, queries, heads, levels, points), attention weights.
        im2col_step: option of the compiled operator; ignored.

    Returns:
        (B, queries, heads * D).
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    result: torch.Tensor = multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
    return result


def ms_deform_attn_backward(
    value: torch.Tensor,
    shapes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    grad_output: torch.Tensor,
    grad_value: torch.Tensor,
    grad_locations: torch.Tensor,
    grad_weights: torch.Tensor,
    *,
    im2col_step: int,
) -> None:
    """Fill the three gradients from ``grad_output`` (B, queries, heads * D); runs the forward pass again."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = ms_deform_attn_forward(inputs[0], shapes, starts, *inputs[1:], im2col_step=im2col_step)
        gradients = torch.autograd.grad(output, inputs, grad_output)
    for place, gradient in zip((grad_value, grad_locations, grad_weights), gradients, strict=True):
        place.copy_(gradient)


class _TorchvisionOps(ModuleType):
    """Replacement for ``mmcv._ext``: every name exists, so that ``mmcv.ops`` imports; few can be called."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)
    sigmoid_focal_loss_forward = staticmethod(sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(sigmoid_focal_loss_backward)
    ms_deform_attn_forward = staticmethod(ms_deform_attn_forward)
    ms_deform_attn_backward = staticmethod(ms_deform_attn_backward)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise MissingOpError(f"{name}: needs mmcv's compiled operators (envs/ has a recipe)")

        return missing


def install() -> str:
    """Make ``mmcv.ops`` importable; return the backend in use, ``compiled`` or ``torchvision``."""
    if isinstance(sys.modules.get(NAME), _TorchvisionOps):
        return "torchvision"
    try:
        importlib.import_module(NAME)
        return "compiled"
    except ModuleNotFoundError:
        pass
    except ImportError as error:  # compiled for another version of torch
        logging.getLogger(__name__).warning(
            "%s does not load (%s); using torchvision's operators", NAME, error
        )
    module = _TorchvisionOps(NAME)
    module.__spec__ = ModuleSpec(NAME, None)
    sys.modules[NAME] = module
    return "torchvision"

"""MMDetection without compiled operators: torchvision's ``nms`` and ``roi_align`` under mmcv's name.

mmcv's own operators take minutes to build and an nvcc for CUDA; torchvision ships the two that
Faster R-CNN, RTMDet and RetinaNet use, for CPU and CUDA. Call :func:`install` before ``mmcv.ops``
is imported. A compiled ``mmcv._ext`` wins.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

NAME = "mmcv._ext"


class MissingOpError(NotImplementedError):
    """An operator of mmcv that torchvision has no counterpart for was called."""


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    """Indices of the boxes kept by greedy suppression, best score first.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: boxes that overlap a better one by more than this go.
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
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (K, C, h, w) with the averages of ``features`` (B, C, H, W) over ``rois`` (K, 5)."""
    _average_only(pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            features, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input`` (B, C, H, W) from ``grad_output`` (K, C, h, w)."""
    _average_only(pool_mode)
    batch, channels, height, width = grad_input.shape
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois, spatial_scale, aligned_height, aligned_width,
            batch, channels, height, width, sampling_ratio, aligned,
        )
    )  # fmt: skip


def _average_only(pool_mode: int) -> None:
    if pool_mode != 1:
        raise MissingOpError("roi_align: max pooling needs mmcv's compiled operators (envs/ has a recipe)")


class _TorchvisionOps(ModuleType):
    """Stands in for ``mmcv._ext``: every name exists, so that ``mmcv.ops`` imports; few can be called."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise MissingOpError(f"{name}: needs mmcv's compiled operators (envs/ has a recipe)")

        return missing


def install() -> str:
    """Make ``mmcv.ops`` importable; returns the live backend, ``compiled`` or ``torchvision``."""
    if isinstance(sys.modules.get(NAME), _TorchvisionOps):
        return "torchvision"
    try:
        importlib.import_module(NAME)
        return "compiled"
    except ModuleNotFoundError:
        pass
    except ImportError as error:  # built for another torch
        logging.getLogger(__name__).warning(
            "%s does not load (%s); using torchvision's operators", NAME, error
        )
    module = _TorchvisionOps(NAME)
    module.__spec__ = ModuleSpec(NAME, None)
    sys.modules[NAME] = module
    return "torchvision"

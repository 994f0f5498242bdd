"""Initial weights of a detector: for its backbone only, or from a whole pretrained detector (COCO)."""

import logging
from pathlib import Path

import torch

from drgrade.checkpoints import read_tensors
from drgrade.errors import UserError

log = logging.getLogger(__name__)

PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "encoder.", "decoder.")
"""Tensor name prefixes of a detector's parts other than the backbone."""
HEADS = ("roi_head.", "bbox_head.")
"""Prefixes of tensors that may differ in size, because the number of classes differs."""


def is_detector(path: Path) -> bool:
    """Whether a weights file contains more than a backbone.

    Raises:
        UserError: the file is missing or contains anything other than tensors.
    """
    return any(key.startswith(PARTS) for key in read_tensors(path))


def start_from(model: torch.nn.Module, path: Path) -> None:
    """Load a whole detector's weights, except tensors of its heads that are missing or differ in size.

    Args:
        model: an MMDetection model; its backbone may be a :class:`.backbone.TimmBackbone`, because timm's
            ResNets have the same tensor names as MMDetection's.
        path: MMDetection checkpoint of the same architecture; its classes may differ.

    Raises:
        UserError: a tensor outside the heads is missing or differs in size.
    """
    own = model.state_dict()
    tensors = read_tensors(path)
    tensors |= {f"backbone.net.{key.removeprefix('backbone.')}": value for key, value in tensors.items()}
    found = {key: tensors[key] for key in own if key in tensors}
    for key, value in own.items():
        fits = key in found and found[key].shape == value.shape
        if not fits and not key.startswith(HEADS) and not key.endswith("num_batches_tracked"):
            there = f"is {tuple(found[key].shape)}" if key in found else "is missing"
            raise UserError(f"{path}: {key} {there}, not {tuple(value.shape)}; it is of another architecture")
    fitting = {key: value for key, value in found.items() if value.shape == own[key].shape}
    model.load_state_dict(own | fitting)
    log.info("%s: %d of %d tensors", path, len(fitting), len(own))

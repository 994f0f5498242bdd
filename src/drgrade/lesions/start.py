"""Start weights of a detector: of its backbone alone, or of a whole detector trained elsewhere (COCO)."""

import logging
from pathlib import Path

import torch

from drgrade.encoders import read_tensors
from drgrade.errors import UserError

log = logging.getLogger(__name__)

PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "encoder.", "decoder.")
"""What a detector has beside its backbone."""
HEADS = ("roi_head.", "bbox_head.")
"""Where tensors may be of another size, because there are other classes."""


def is_detector(path: Path) -> bool:
    """Whether a weights file holds more than a backbone.

    Raises:
        UserError: the file is missing or holds anything but tensors.
    """
    return any(key.startswith(PARTS) for key in read_tensors(path))


def start_from(model: torch.nn.Module, path: Path) -> None:
    """Load a whole detector's tensors, except those of its head that are of another size here.

    Args:
        model: an MMDetection model; its backbone may be a :class:`.backbone.TimmBackbone`, whose ResNets have
            the tensor names of MMDetection's.
        path: MMDetection's checkpoint of the same architecture, with other classes perhaps.

    Raises:
        UserError: a tensor outside of the head is missing or of another size.
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

"""Lesion maps: where a grader's own lesion network sees lesions, as in CLPI and DeepMT-DR.

A map of probabilities 0-1, on one scale for all images. It shows what the grading network is given, not what
its grade depends on.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.errors import UserError
from drgrade.explain.base import BATCH, EXPLAINERS, Heat, encoder_of, nested


@EXPLAINERS.register("lesion_maps")
class LesionMaps:
    """The probability of a lesion at each position, as the network's method ``lesion_map`` gives it.

    ``lesion_map(images)`` takes normalised images (B, 3, H, W) and returns probabilities (B, h, w) over the
    whole image, at any resolution, or None if the network was built without its lesion network.
    """

    @torch.no_grad()
    def heat(self, model: nn.Module, batch: Tensor) -> Heat:
        """Return lesion probabilities (B, h, w) of normalised images (B, 3, H, W), in the network's own
        resolution: small lesions would be lost in the input's. Puts the model in evaluation mode.

        Raises:
            UserError: the network has no lesion network.
        """
        model.eval()
        lesion_map = lesion_map_of(model)
        maps = []
        for part in batch.split(BATCH):
            found = lesion_map(part)
            if found is None:
                raise refusal("this network was built without segmentation")
            maps.append(found.float().cpu().numpy())
        return np.concatenate(maps)


def lesion_map_of(model: nn.Module) -> Callable[[Tensor], Tensor | None]:
    """Return the method ``lesion_map`` of a grader's network, or of a network that it wraps.

    Raises:
        UserError: none of them has it.
    """
    for module in nested(model):
        found: Callable[[Tensor], Tensor | None] | None = getattr(module, "lesion_map", None)
        if found is not None:
            return found
    raise refusal(f"{type(encoder_of(model)).__name__} has none")


def refusal(reason: str) -> UserError:
    """Return the error for a grader without a lesion network."""
    return UserError(
        "explanations.<name>.method: lesion_maps needs a grader with a lesion network (clpi, or deepmt with "
        f"segmentation), but {reason}; use cam, or explain another experiment"
    )

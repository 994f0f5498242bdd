"""Interface of explainers: each is a module of this package with one class, registered by the module's name.

>>> @EXPLAINERS.register("cam")
... class GradCam: ...
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from drgrade.plugins import Registry

EXPLAINERS = Registry("drgrade.explain")

Heat = npt.NDArray[np.float32]
"""A heat map or a batch of them, 0-1; 1 marks the strongest evidence for a higher grade."""


class Explainer(Protocol):
    """Computes heat maps: how much each image region contributes to a network's grade."""

    def heat(self, model: nn.Module, batch: torch.Tensor) -> Heat:
        """Return heat maps (B, H, W) of normalised images (B, 3, H, W).

        Args:
            model: network that returns scores (B,) or (B, 1), or logits of the grades (B, 5).
            batch: images on the model's device.

        """
        ...

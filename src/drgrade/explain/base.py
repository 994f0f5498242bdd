"""Interface of explainers: each is a module of this package with one class, registered by the module's name.

>>> @EXPLAINERS.register("cam")
... class GradCam: ...
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from drgrade.plugins import Registry
from drgrade.schema import GRADES

EXPLAINERS = Registry("drgrade.explain")

BATCH = 8
"""Images per batch, to limit memory."""

Heat = npt.NDArray[np.float32]
"""A heat map or a batch of them, 0-1; 1 marks the strongest evidence for a higher grade, or a lesion."""
Values = npt.NDArray[np.float32]
"""A map or a batch of them in grade units, unbounded, about 0-4."""


class Explainer(Protocol):
    """Computes heat maps: how much each image region contributes to a network's grade.

    The colour scale depends on the method. ``cam``, ``gmsv``: each image is scaled on its own, so its hottest
    region is 1 whatever its grade. ``ram``: one common scale, on which grade 4 is 1. ``lesion_maps``
    does not depend on the grade: it shows the probability of a lesion.
    """

    def heat(self, model: nn.Module, batch: torch.Tensor) -> Heat:
        """Return heat maps (B, h, w) of normalised images (B, 3, H, W).

        Maps cover the whole input, at any resolution; they are 0 where the network does not look (see
        :func:`margin`).

        Args:
            model: network that returns scores (B,) or (B, 1), or logits of the grades (B, 5).
            batch: images on the model's device.

        """
        ...


@runtime_checkable
class InGrades(Explainer, Protocol):
    """An explainer whose maps have a unit, so that they can be compared between images and averaged."""

    def values(self, model: nn.Module, batch: torch.Tensor) -> Values:
        """Return maps (B, h, w) in grade units of normalised images (B, 3, H, W).

        They have the resolution of the network's feature map and cover the part of the input that the network
        looks at; :func:`over_input` places them in the input.

        Args:
            model: network that returns scores (B,) or (B, 1).
            batch: images on the model's device.
        """
        ...


def to_heat(values: Values) -> Heat:
    """Return the heat of values in grade units on the common scale: grade 4 and above is 1, below 0 is 0."""
    return (values / GRADES[-1]).clip(0, 1)


def nested(model: nn.Module) -> list[nn.Module]:
    """Return a grader's network and what it wraps (``Scores``, ``Frozen``), down to the encoder."""
    modules = [model]
    for name in ("network", "encoder", "encoder"):
        if hasattr(modules[-1], name):
            modules.append(getattr(modules[-1], name))
    return modules


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the innermost of :func:`nested`: the encoder, or ``model`` itself where it wraps nothing."""
    return nested(model)[-1]


def margin(model: nn.Module, side: int) -> int:
    """Return the number of pixels that the encoder cuts off each side of its input before it looks at it.

    An encoder says so by a method ``margin(side) -> int``; without one it is 0.

    Args:
        model: a grader's network.
        side: side of the input in pixels.
    """
    of_encoder: Callable[[int], int] | None = getattr(encoder_of(model), "margin", None)
    return of_encoder(side) if of_encoder else 0


def over_input(maps: npt.NDArray[np.float32], model: nn.Module, side: int) -> npt.NDArray[np.float32]:
    """Resample maps to the network's input and place them where the network looks.

    Args:
        maps: (B, h, w) over the part of the input within the margin, at any resolution.
        model: the network.
        side: side of the input in pixels.

    Returns:
        float32 (B, side, side), interpolated bilinearly; 0 in the margin.
    """
    cut = margin(model, side)
    whole = np.zeros((len(maps), side, side), np.float32)
    for place, one in zip(whole[:, cut : side - cut, cut : side - cut], maps, strict=True):
        place[:] = cv2.resize(one, place.shape, interpolation=cv2.INTER_LINEAR)
    return whole

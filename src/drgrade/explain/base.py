"""Interface of explainers: each is a module of this package with one class, registered by the module's name.

>>> @EXPLAINERS.register("cam")
... class GradCam: ...

Most explain a grader's network (:class:`Explainer`). Some show lesions in a photograph, whatever its grade
(:class:`LesionExplainer`); these are listed in ``drgrade.params.results.NEEDS``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drgrade.explain.photographs import Photograph
from drgrade.images.dataset import CroppedDataset
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

    The colour scale depends on the method. ``cam``, ``layercam``, ``gmsv``, ``attention``: each image is
    scaled on its own, so its hottest region is 1 whatever its grade. ``ram``: one common scale, on which
    grade 4 is 1. ``lesion_maps`` does not depend on the grade: it shows the probability of a lesion.
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


@runtime_checkable
class PerHead(Explainer, Protocol):
    """Explains a transformer, with a map for each attention head; the heat map is that of their mean."""

    def heads(self, model: nn.Module, batch: torch.Tensor) -> Values:
        """Return maps (B, K, h, w) of the K heads, not scaled, for normalised images (B, 3, H, W).

        Args:
            model: a grader's network.
            batch: images on the model's device.
        """
        ...


@dataclass(frozen=True)
class LesionResults:
    """Results of the lesion stages, for explainers that show lesions.

    Attributes:
        masked: dataset with lesion masks, on which these stages were trained.
        boxes: folders with ``lesions.parquet`` and ``searched.parquet``, by name of the searched dataset.
        segmentation: folder of the trained networks, ``<part>/model``; None unless it is needed.
    """

    masked: CroppedDataset
    boxes: Mapping[str, Path]
    segmentation: Path | None = None


class LesionExplainer(Protocol):
    """Shows the lesions in a photograph; created with :class:`LesionResults`."""

    def explains(self, source: CroppedDataset) -> set[str]:
        """Return image ids of a dataset: the photographs that can be explained by what was not trained on
        them.
        """
        ...

    def heat(self, photograph: Photograph) -> Heat:
        """Return a heat map (H, W) in pixels of the photograph."""
        ...


def expected_grade(output: Tensor) -> Tensor:
    """Return the scalar to explain from one sample's output: its score, or its expected grade (softmax)."""
    if output.numel() == 1:
        return output.reshape(())
    grades = torch.arange(output.numel(), dtype=output.dtype, device=output.device)
    return (output.softmax(dim=0) * grades).sum()


def scaled(maps: Values) -> Heat:
    """Divide each of the maps (..., h, w), values >= 0, by its maximum; a map of zeros stays."""
    return maps / np.maximum(maps.max(axis=(-2, -1), keepdims=True), np.finfo(np.float32).tiny)


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


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Context manager: its list receives the outputs of modules, in the order in which they are computed."""
    found: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: found.append(output)) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


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

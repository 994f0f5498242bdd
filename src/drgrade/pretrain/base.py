"""The interface of a pretraining method, and the data it receives.

A method is one module of this package with one class, registered under the module's name; its block
of ``params.yaml`` is ``pretrain.<name>``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drgrade.encoders import create_encoder, forward_blank
from drgrade.grading.base import Photographs
from drgrade.images.store import Images
from drgrade.plugins import Registry

METHODS = Registry("drgrade.pretrain")


@dataclass(frozen=True)
class Graded:
    """Graded photographs for monitoring an encoder (:mod:`drgrade.pretrain.watch`); never trained on.

    Attributes:
        train: labelled neighbours for the k-NN, at least one.
        val: photographs that the k-NN grades, at least one; never from the test set.
    """

    train: Photographs
    val: Photographs


@dataclass(frozen=True)
class Material:
    """The data to pretrain on, without grades.

    Attributes:
        images: uint8 RGB crops (N, S, S, 3).
        rows: row in ``images`` of each photograph that is used, int64 (n,).
        boxes: lesion boxes in crop pixels, one float array (k, 4) for each photograph; k >= 1 if the
            method needs boxes, otherwise k may be 0.
        patch: side of a patch in crop pixels.
        kinds: lesion type of each box, one int64 array (k,) of indices into ``drgrade.schema.LESIONS`` for
            each photograph; None unless the method needs kinds.
        graded: graded photographs for monitoring the encoder; None for no monitoring.
    """

    images: Images
    rows: np.ndarray
    boxes: list[np.ndarray]
    patch: int
    kinds: list[np.ndarray] | None = None
    graded: Graded | None = None


class Method(ABC):
    """Trains an encoder without grades.

    Attributes:
        needs_boxes: use only photographs with boxes; otherwise all of the training split, with boxes where
            there are any.
        needs_kinds: boxes must come with the type of their lesion.
    """

    needs_boxes = True
    needs_kinds = False

    def __init__(self, params: dict[str, Any]) -> None:
        """Args: params: the method's block; it names the timm ``encoder``."""
        self.settings = params

    def check(self, patch: int) -> None:
        """Check the params for values that cannot work, without reading data or weights.

        Args:
            patch: side of a patch in crop pixels.

        Raises:
            UserError: timm knows no such encoder, or it does not accept the method's input size.
        """
        name = self.settings["encoder"]
        with torch.device("meta"):
            forward_blank(create_encoder(name, None).eval(), name, self.settings.get("input_size", patch))

    @abstractmethod
    def fit(self, material: Material, *, name: str, key: str, run: Any) -> torch.nn.Module:
        """Train and return the encoder, a timm model without its classifier."""

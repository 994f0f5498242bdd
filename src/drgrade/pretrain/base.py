"""What a pretraining method is, and what it is given.

A method is one module of this package with one class, registered under the module's name; its block
of ``params.yaml`` stands under ``pretrain.<name>``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drgrade.encoders import create_encoder, forward_blank
from drgrade.grading.base import Photographs
from drgrade.images.store import Pictures
from drgrade.plugins import Registry

METHODS = Registry("drgrade.pretrain")


@dataclass(frozen=True)
class Graded:
    """Graded photographs for monitoring an encoder (:mod:`drgrade.pretrain.watch`); never trained on.

    Attributes:
        train: photographs whose grades vote, one or more.
        val: photographs that are graded by them, one or more; never of the test.
    """

    train: Photographs
    val: Photographs


@dataclass(frozen=True)
class Material:
    """What there is to learn from, without grades.

    Attributes:
        images: uint8 RGB crops (N, S, S, 3).
        rows: row in ``images`` of each photograph that takes part, int64 (n,).
        boxes: lesion boxes in crop pixels, one float array (k, 4) for each photograph; k >= 1 where the
            method needs boxes, else also (0, 4).
        patch: side of a patch in crop pixels.
        kinds: what each box holds, one int64 array (k,) of places in ``drgrade.schema.LESIONS`` for each
            photograph; None unless the method needs kinds.
        graded: what to watch the encoder by; None: nothing.
    """

    images: Pictures
    rows: np.ndarray
    boxes: list[np.ndarray]
    patch: int
    kinds: list[np.ndarray] | None = None
    graded: Graded | None = None


class Method(ABC):
    """Learns an encoder without grades.

    Attributes:
        needs_boxes: only photographs with boxes take part; else all of the training split do, with their
            boxes where there are some.
        needs_kinds: boxes must come with the kind of their lesion.
    """

    needs_boxes = True
    needs_kinds = False

    def __init__(self, params: dict[str, Any]) -> None:
        """Args: params: the method's block; it names the timm ``encoder``."""
        self.settings = params

    def check(self, patch: int) -> None:
        """Refuse params that cannot work, without data or weights.

        Args:
            patch: side of a patch in crop pixels.

        Raises:
            UserError: timm knows no such encoder, or it cannot take what this method would show it.
        """
        name = self.settings["encoder"]
        with torch.device("meta"):
            forward_blank(create_encoder(name, None).eval(), name, self.settings.get("input_size", patch))

    @abstractmethod
    def fit(self, material: Material, *, name: str, key: str, run: Any) -> torch.nn.Module:
        """The trained encoder, a timm model without its classifier."""

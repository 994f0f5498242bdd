"""SimCLR on whole photographs (Chen et al., ICML 2020, arXiv 2002.05709), the papers' baseline.

The two views of a photograph show all of it, not one of its lesions; loss, head and training are those of
:mod:`drgrade.pretrain.lesion_contrastive`, so that what is looked at is the only difference. Every
photograph of the training split takes part, healthy ones too.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.images.augment import augment
from drgrade.images.scaled import at_size
from drgrade.pretrain.base import METHODS, Material, Method
from drgrade.pretrain.contrastive import Contrast, Projector, projector, train
from drgrade.training import pictures


class PhotographPairs(Contrast):
    """Pairs of views of whole crops at ``input_size``."""

    def __init__(self, network: Projector, material: Material, params: dict[str, Any]) -> None:
        super().__init__(network, params, material.graded, params["input_size"])
        self.rows = material.rows
        self.images = at_size(material.images, params["input_size"])

    def things(self, epoch: int) -> np.ndarray:
        """Rows of the store, (n,): every photograph once."""
        return self.rows

    def views(self, things: np.ndarray) -> torch.Tensor:
        """Two augmented views of each photograph, (2n, 3, S, S) in 0-1, first views first."""
        seeds = self.seeds(things[:, None]).T.ravel().tolist()
        batch = pictures(self.images, things).repeat(2, 1, 1, 1)
        return augment(batch, self.settings["augment"], seeds, self.settings["input_size"])


@METHODS.register("simclr")
class SimCLR(Method):
    """The method: its block is :class:`drgrade.params.SimCLR`."""

    needs_boxes = False

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the encoder."""
        module = PhotographPairs(projector(self.settings), material, self.settings)
        return train(module, name=name, key=(key,), run=run)

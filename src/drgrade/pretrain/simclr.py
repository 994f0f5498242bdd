"""SimCLR on whole photographs (Chen et al., ICML 2020, arXiv 2002.05709), the papers' baseline.

The two views are made from the whole photograph instead of one lesion; loss, head and training are those of
:mod:`drgrade.pretrain.lesion_contrastive`, so that the views are the only difference. All photographs of the
training split are used, including those without lesions.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.images.augment import draw, plan
from drgrade.images.scaled import at_size
from drgrade.pretrain.base import METHODS, Material, Method
from drgrade.pretrain.contrastive import Contrast, Projector, projector, train
from drgrade.pretrain.views import Pairs
from drgrade.training import pictures


class PhotographPairs(Contrast):
    """Pairs of views of whole crops at ``input_size``."""

    def __init__(self, network: Projector, material: Material, params: dict[str, Any]) -> None:
        super().__init__(network, params, material.graded, params["input_size"])
        self.rows = material.rows
        self.images = at_size(material.images, params["input_size"])

    def samples(self, epoch: int) -> np.ndarray:
        """Rows of the store, (n,): every photograph once."""
        return self.rows

    def pairs(self, samples: np.ndarray, epoch: int) -> Pairs:
        """Each photograph once, (n, 3, S, S), and the augmentation of its two views."""
        changes, seeds = self.settings["augment"], self.seeds(samples, epoch).T.ravel()
        return Pairs(pictures(self.images, samples), plan(changes, draw(changes, seeds)))

    def views(self, pairs: Pairs) -> torch.Tensor:
        """Two augmented views of each photograph, (2n, 3, S, S) in 0-1, first views first."""
        return super().views(Pairs(pairs.pixels.repeat(2, 1, 1, 1), pairs.changes))


@METHODS.register("simclr")
class SimCLR(Method):
    """The method; its params are :class:`drgrade.params.SimCLR`."""

    needs_boxes = False

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the encoder."""
        module = PhotographPairs(projector(self.settings), material, self.settings)
        return train(module, name=name, key=(key,), run=run)

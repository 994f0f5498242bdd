"""Lesion-based contrastive learning (Huang et al., MICCAI 2021, arXiv 2107.08274).

Two augmented windows around the same detected lesion are pulled together, windows around other lesions are
pushed away (NT-Xent). The published code uses one lesion per photograph and epoch, so that no two samples of
a batch are from the same photograph; with ``boxes_per_image`` above 1 they may be, and are then negatives
like any others (unless ``positives`` is ``lesion`` and they are of the same type).
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.pretrain.base import METHODS, Material, Method
from drgrade.pretrain.contrastive import Contrast, Projector, projector, train
from drgrade.pretrain.views import Pairs, pair_views
from drgrade.seeding import numpy_rng


class LesionPairs(Contrast):
    """Pairs of windows from the store of crops, augmented in batches on the device."""

    def __init__(self, network: Projector, material: Material, params: dict[str, Any]) -> None:
        # size of whole crops for monitoring: lesions are about half as large as in training; a quarter of the
        # cost of full size where crops are four patches wide, and a multiple of the network's input size
        super().__init__(network, params, material.graded, 2 * material.patch)
        self.material = material
        # torchvision uses torch's global generator, and so does the training step
        self.ahead = params["order"] != "published"

    def samples(self, epoch: int) -> np.ndarray:
        """Indices of photograph and box in the material, int64 (n, 2).

        Of each photograph ``boxes_per_image`` boxes are drawn without replacement, or all where there are
        fewer; the draw depends on (seed, epoch, row).
        """
        counts = np.array([len(boxes) for boxes in self.material.boxes])
        most = min(self.settings["boxes_per_image"], int(counts.max()))
        rng = numpy_rng(self.seed, "box", epoch)
        # drawn for every row of the store: a row's numbers do not depend on which others are used
        chance = rng.random((most, len(self.material.images)))[:, self.material.rows]
        order = np.tile(np.arange(counts.max(), dtype=np.int32), (len(counts), 1))
        every = np.arange(len(counts))
        for place in range(most):  # the first steps of a Fisher-Yates shuffle, of all photographs at once
            left = np.maximum(counts - place, 1)
            other = place + np.floor(chance[place] * left).astype(np.int64)
            order[every, place], order[every, other] = order[every, other], order[every, place]
        photograph, rank = np.nonzero(np.arange(most) < counts[:, None])
        return np.stack([photograph, order[photograph, rank]], axis=1)

    def pairs(self, samples: np.ndarray, epoch: int) -> Pairs:
        """Two windows around each box."""
        rows = self.material.rows[samples[:, 0]]
        return pair_views(
            self.material.images,
            rows,
            np.stack([self.material.boxes[place][box] for place, box in samples]),
            self.material.patch,
            self.settings["augment"],
            self.seeds(np.stack([rows, samples[:, 1]], axis=1), epoch),
            window=self.settings["window"],
            order=self.settings["order"],
        )

    def kinds(self, samples: np.ndarray) -> torch.Tensor | None:
        """Lesion types, int64 (n,), if lesions of the same type are positives; otherwise None."""
        if self.settings["positives"] == "pair":
            return None
        assert self.material.kinds is not None
        return torch.tensor([self.material.kinds[place][box] for place, box in samples])


@METHODS.register("lesion_contrastive")
class LesionContrastive(Method):
    """The method; its params are :class:`drgrade.params.LesionContrastive`."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(params)
        self.needs_kinds = params["positives"] == "lesion"

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the encoder; the projection head is dropped."""
        module = LesionPairs(projector(self.settings), material, self.settings)
        return train(module, name=name, key=(key, material.patch), run=run)

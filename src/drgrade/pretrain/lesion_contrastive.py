"""Lesion-based contrastive learning (Huang et al., MICCAI 2021, arXiv 2107.08274).

Two augmented windows around the same detected lesion are pulled together, windows around other lesions are
pushed away (NT-Xent). The published code shows one lesion of each photograph an epoch, so that no two of a
batch are from one photograph; with ``boxes_per_image`` above 1 a batch may hold several of one, which then
push each other away like any others (unless ``positives`` is ``lesion`` and they are of one kind).
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
        # crops where a lesion is about half as large as in training: a quarter of the work at full size where
        # crops are four patches wide, and a multiple of what the network takes
        super().__init__(network, params, material.graded, 2 * material.patch)
        self.material = material
        # torchvision draws from torch's one generator, which the training step draws from as well
        self.ahead = params["order"] != "published"

    def samples(self, epoch: int) -> np.ndarray:
        """Photograph and box, int64 (n, 2), places in the material.

        Of each photograph ``boxes_per_image`` boxes, or all where there are fewer, drawn without replacement
        from (seed, epoch, row).
        """
        counts = np.array([len(boxes) for boxes in self.material.boxes])
        most = min(self.settings["boxes_per_image"], int(counts.max()))
        rng = numpy_rng(self.seed, "box", epoch)
        # drawn for every row of the store: a row's numbers do not depend on which others take part
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
        """Kinds of lesions, int64 (n,), where those of a kind are alike."""
        if self.settings["positives"] == "pair":
            return None
        assert self.material.kinds is not None
        return torch.tensor([self.material.kinds[place][box] for place, box in samples])


@METHODS.register("lesion_contrastive")
class LesionContrastive(Method):
    """The method: its block is :class:`drgrade.params.LesionContrastive`."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(params)
        self.needs_kinds = params["positives"] == "lesion"

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the encoder; the projection head is dropped."""
        module = LesionPairs(projector(self.settings), material, self.settings)
        return train(module, name=name, key=(key, material.patch), run=run)

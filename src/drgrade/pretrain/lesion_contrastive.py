"""Lesion-based contrastive learning (Huang et al., MICCAI 2021, arXiv 2107.08274).

Two augmented windows around the same detected lesion are pulled together, windows of other
photographs are pushed away (NT-Xent). Every photograph with a lesion is visited once an epoch and
shows one of its lesions. Deviation: windows stay inside the crop instead of being padded with black
on the right and at the bottom (docs/deviations.md).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.encoders import create_encoder, normalisation, width
from drgrade.images.augment import augment, normalise
from drgrade.images.store import windows
from drgrade.pretrain.base import METHODS, Material, Method
from drgrade.seeding import derive, numpy_rng, seed_everything
from drgrade.training import Batches, Module, device, fit, loader


class Projector(nn.Module):
    """Encoder and the projection head of section 7.3: Linear-ReLU-Linear to 128 values.

    Input: normalised patches (B, 3, P, P). Output: (B, 128), not yet of unit length.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        features = width(encoder)
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Projections (B, 128)."""
        return self.head(self.encoder(batch))


def window(box: np.ndarray, patch: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Left and top edge of a random ``patch`` window that holds the box and stays inside the crop.

    Args:
        box: (x1, y1, x2, y2) in crop pixels, no side longer than ``patch``.
        patch: side of the window.
        size: side of the crop, at least ``patch``.
        rng: where chance comes from.
    """
    edges = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        first = min(max(0, math.ceil(high - patch)), size - patch)
        last = max(first, min(math.floor(low), size - patch))
        edges.append(int(rng.integers(first, last + 1)))
    return edges[0], edges[1]


class LesionPairs(Module):
    """Pairs of windows from the store of crops, augmented in batches on the device."""

    def __init__(self, network: Projector, material: Material, params: dict[str, Any]) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss

        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = normalisation(params["encoder"])
        self.material = material
        self.settings = params
        self.seed = params["seed"]
        self.criterion = NTXentLoss(temperature=params["temperature"])

    def train_dataloader(self) -> Any:
        """Batches of photographs of this epoch."""
        batches = Batches(
            len(self.material.rows), self.settings["batch_size"], self.seed, self.current_epoch, True
        )
        return loader(batches)

    def views(self, items: np.ndarray, view: int) -> torch.Tensor:
        """One augmented window for each photograph, normalised (B, 3, P, P)."""
        patch, size = self.material.patch, self.material.images.shape[1]
        corners, seeds = [], []
        for item in items:
            boxes = self.material.boxes[item]
            box = boxes[numpy_rng(self.seed, "box", self.current_epoch, int(item)).integers(len(boxes))]
            rng = numpy_rng(self.seed, "window", self.current_epoch, int(item), view)
            corners.append(window(box, patch, size, rng))
            seeds.append(derive(self.seed, "augment", self.current_epoch, int(item), view))
        cuts = windows(self.material.images, self.material.rows[items], np.array(corners), patch)
        batch = torch.from_numpy(cuts).to(device()).permute(0, 3, 1, 2)
        return normalise(augment(batch, self.settings["augment"], seeds, patch), self.mean, self.std)

    def training_step(self, items: np.ndarray, _: int) -> torch.Tensor:
        """NT-Xent over the 2B projections."""
        batch = torch.cat([self.views(items, 0), self.views(items, 1)])
        first, second = self.network(batch.contiguous(memory_format=torch.channels_last)).float().chunk(2)
        loss = self.criterion(first, second)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """SGD with Nesterov momentum, cosine to zero over all steps."""
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.settings["lr"],
            momentum=0.9,
            nesterov=True,
            weight_decay=self.settings["weight_decay"],
        )
        steps = len(Batches(len(self.material.rows), self.settings["batch_size"], self.seed, 0, True))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * self.settings["epochs"])
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@METHODS.register("lesion_contrastive")
class LesionContrastive(Method):
    """The method: its block is :class:`drgrade.params.LesionContrastive`."""

    def fit(self, material: Material, *, name: str, key: str, run: Any) -> nn.Module:
        """Train and return the encoder; the projection head is dropped."""
        seed_everything(self.settings["seed"], "head")
        network = Projector(create_encoder(self.settings["encoder"], self.settings["start"]))
        module = LesionPairs(network, material, self.settings)
        fit(
            module,
            name=name,
            epochs=self.settings["epochs"],
            seed=self.settings["seed"],
            key=(key, self.settings, material.patch),
            run=run,
        )
        return network.encoder

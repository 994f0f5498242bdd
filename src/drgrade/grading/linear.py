"""Regress the grade on the features of a frozen encoder with one linear unit.

The linear evaluation of Huang et al. (arXiv 2110.14160), for which no code was published; the nearest of its
authors (SSiT, arXiv 2210.10969) gives the loss (MSE), the optimiser (Adam on a cosine) and the start of the
unit. Deviations: features are computed once, in evaluation mode and without augmentation; the learning rate
is chosen on validation; features are centred and brought to one common scale.

That scale (by training photographs alone) makes a learning rate mean the same for every encoder. It is one
number for all features, because at one percent of the labels a feature's own deviation is that of a few
photographs: dividing by it would blow up whichever features happen not to vary among them.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from drgrade.encoders import read_tensors
from drgrade.grading.base import GRADERS, Grader, Training, interpolated
from drgrade.grading.features import Frozen, best, features
from drgrade.grading.finetune import write_model
from drgrade.grading.regression import infer, regression_head
from drgrade.images.scaled import at_size
from drgrade.images.store import Pictures
from drgrade.seeding import seed_everything
from drgrade.training import Batches, device

log = logging.getLogger(__name__)


class Probe(nn.Module):
    """Frozen encoder, features to a common scale, and one linear unit.

    Input: normalised pictures (B, 3, size, size). Output: scores (B,), unbounded, about 0-4.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, encoder: Frozen) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centre", torch.zeros(encoder.width))
        self.register_buffer("scale", torch.ones(()))
        self.head = regression_head(encoder.width)

    def adapt(self, found: np.ndarray) -> None:
        """Take centre and scale from the training photographs' features (n, D)."""
        deviation = float(np.sqrt(found.var(axis=0, dtype=np.float64).mean()))
        self.centre.copy_(torch.from_numpy(found.mean(axis=0, dtype=np.float64)))
        self.scale.fill_(deviation or 1.0)  # of a single photograph there is none

    def scaled(self, found: torch.Tensor) -> torch.Tensor:
        """Features (B, D) as the linear unit takes them."""
        return (found - self.centre) / self.scale

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores (B,)."""
        return self.head(self.scaled(self.encoder(batch))).squeeze(1)


def regress(
    inputs: torch.Tensor, grades: torch.Tensor, head: nn.Linear, settings: dict[str, Any], seed: int
) -> dict[float, nn.Linear]:
    """Train one copy of ``head`` for each learning rate, side by side.

    The copies share batches but no parameter, so the gradient of the summed loss is each one's own and none
    learns otherwise than it would alone.

    Args:
        inputs: features (n, D).
        grades: targets, float (n,).
        head: where all start.
        settings: the block ``grade.linear``.
        seed: of the order.

    Returns:
        The trained heads, by learning rate.
    """
    heads = {lr: copy.deepcopy(head) for lr in settings["lr"]}
    groups = [{"params": one.parameters(), "lr": lr} for lr, one in heads.items()]
    optimizer = torch.optim.Adam(groups, weight_decay=settings["weight_decay"])
    size, epochs = settings["batch_size"], settings["epochs"]
    steps = len(Batches(len(inputs), size, seed, 0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)
    for epoch in range(epochs):
        for items in Batches(len(inputs), size, seed, epoch).batches:
            chosen = torch.from_numpy(items).to(inputs.device)
            batch, target = inputs[chosen], grades[chosen]
            losses = [nn.functional.mse_loss(one(batch).squeeze(1), target) for one in heads.values()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return heads


@GRADERS.register("linear")
class Linear(Grader):
    """The grader: trains the head of a :class:`Probe`, predicts probabilities around its score."""

    network: Probe

    def fit(self, training: Training) -> None:
        """Train on features; choose the learning rate on validation, the first where nothing validates."""
        seed_everything(training.seed, "head")  # as in finetune: the same seed, the same random encoder
        frozen = Frozen(self.encoder, training.start, self.settings["input_size"], blocks=True)
        self.network = Probe(frozen).to(device())
        found = features(frozen, training.train.images, training.train.rows)
        self.network.adapt(found)
        inputs = self.network.scaled(torch.from_numpy(found).to(device()))
        grades = torch.tensor(training.train.grades, dtype=torch.float32).to(device())
        heads = regress(inputs, grades, self.network.head, self.settings["linear"], training.seed)
        lr = self._chosen(heads, training)
        self.network.head.load_state_dict(heads[lr].state_dict())

    def _chosen(self, heads: dict[float, nn.Linear], training: Training) -> float:
        """The best learning rate on validation."""
        if not len(training.val):
            return self.settings["linear"]["lr"][0]
        found = features(self.network.encoder, training.val.images, training.val.rows)
        with torch.inference_mode():
            inputs = self.network.scaled(torch.from_numpy(found).to(device()))
            scores = {lr: one(inputs).squeeze(1).double().cpu().numpy() for lr, one in heads.items()}
        lr, agreement = best(scores, training.val.grades)
        log.info("%s  lr %g of %s  val_qwk %.4g", training.name, lr, list(heads), agreement[lr])
        measured = {f"val_qwk_lr{one:g}": value for one, value in agreement.items()}
        training.run.metrics({**measured, "lr": lr, "val_qwk": agreement[lr]})
        return lr

    def predict(self, images: Pictures, rows: np.ndarray) -> np.ndarray:
        """Probabilities (n, 5); the score is their expectation."""
        frozen = self.network.encoder
        return interpolated(infer(self.network, at_size(images, frozen.size), rows, frozen.mean, frozen.std))

    def save(self, folder: Path) -> None:
        """``model.safetensors`` and ``model.json``."""
        write_model(self, "linear", self.network, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read both files; every tensor must fit."""
        about = json.loads((folder / "model.json").read_text())
        grader = cls(about["encoder"], about["settings"])
        frozen = Frozen(about["encoder"], "random", about["settings"]["input_size"], blocks=True)
        grader.network = Probe(frozen)
        grader.network.load_state_dict(read_tensors(folder / "model.safetensors"))
        return grader

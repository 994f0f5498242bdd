"""The network of the grader ``finetune`` and its training: an encoder with one linear unit, on squared error.

The recipe of Huang et al. (arXiv 2110.14160): MSE on the grade, midpoints as thresholds, chosen on
validation QWK. Deviations: AdamW with a one-cycle schedule for SGD, any timm encoder.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.encoders import create_encoder, normalisation, width
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Training
from drgrade.images.augment import augment, normalise
from drgrade.images.scaled import at_size
from drgrade.images.store import Pictures
from drgrade.inference import outputs
from drgrade.seeding import derive
from drgrade.training import Batches, Module, loader, pictures


class Regressor(nn.Module):
    """Encoder, pooled features and one linear unit.

    Input: normalised pictures (B, 3, H, W). Output: scores (B,), unbounded, about 0-4.
    """

    def __init__(self, encoder: str, start: str) -> None:
        super().__init__()
        self.encoder = create_encoder(encoder, start)
        self.head = regression_head(width(self.encoder))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores (B,)."""
        return self.head(self.encoder(batch)).squeeze(1)


def regression_head(features: int) -> nn.Linear:
    """One linear unit: weights of mean 0 and deviation 0.01, so that every score starts about grade 1."""
    head = nn.Linear(features, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias, 1.0)
    return head


class FineTune(Module):
    """One training: batches from the store, augmented on the device, validated every epoch."""

    def __init__(self, network: Regressor, encoder: str, params: dict[str, Any], training: Training) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = normalisation(encoder)
        self.settings = params
        self.seed = training.seed
        self.select_best = params["select"] == "best" and len(training.val) > 0
        self.images = at_size(training.train.images, params["input_size"])
        self.rows = training.train.rows
        self.grades = torch.tensor(training.train.grades, dtype=torch.float32)
        self.val_images = at_size(training.val.images, params["input_size"])
        self.val_rows = training.val.rows
        self.val_grades = training.val.grades
        self.best_qwk = -2.0
        self.best_weights: dict[str, torch.Tensor] = {}

    def train_dataloader(self) -> Any:
        """Batches of this epoch."""
        return loader(Batches(len(self.rows), self.settings["batch_size"], self.seed, self.current_epoch))

    def training_step(self, items: np.ndarray, _: int) -> torch.Tensor:
        """Mean squared error between scores and grades."""
        seeds = [derive(self.seed, "augment", self.current_epoch, int(item)) for item in items]
        batch = pictures(self.images, self.rows[items])
        batch = augment(batch, self.settings["augment"], seeds, self.settings["input_size"])
        batch = normalise(batch, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        scores = self.network(batch)
        loss = nn.functional.mse_loss(scores.float(), self.grades[items].to(scores.device))
        self.losses.append(loss.detach())
        return loss

    def validate(self) -> dict[str, float]:
        """Validation QWK; keeps the weights that gave the best, averaged ones where they are averaged."""
        if not len(self.val_rows):
            return {}
        scores = infer(self.network, self.val_images, self.val_rows, self.mean, self.std)
        value = qwk(self.val_grades, to_grades(scores))
        if self.select_best and value > self.best_qwk:
            self.best_qwk = value
            self.best_weights = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
        self.network.train()
        return {"val_qwk": value, "val_mse": float(np.mean((scores - self.val_grades) ** 2))}

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule, both stepped once for ``accumulate`` batches."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings["lr"], weight_decay=self.settings["weight_decay"]
        )
        batches = len(Batches(len(self.rows), self.settings["batch_size"], self.seed, 0))
        steps = math.ceil(batches / self.settings["accumulate"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.settings["lr"], total_steps=steps * self.settings["epochs"]
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The best epoch so far survives a kill."""
        checkpoint["best"] = {"qwk": self.best_qwk, "weights": self.best_weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the best epoch so far."""
        self.best_qwk = checkpoint["best"]["qwk"]
        self.best_weights = checkpoint["best"]["weights"]


def infer(
    network: nn.Module, images: Pictures, rows: np.ndarray, mean: list[float], std: list[float]
) -> np.ndarray:
    """Scores, float64 (n,), of ``images[rows]`` (uint8, at input size), in evaluation mode."""
    return outputs(network.eval(), images, rows, mean, std).astype(np.float64)

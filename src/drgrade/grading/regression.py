"""The network of the grader ``finetune`` and its training: an encoder with one linear unit, on squared error.

The recipe of Huang et al. (arXiv 2110.14160): MSE on the grade, midpoints as thresholds, chosen on
validation QWK. Deviations: AdamW with a one-cycle schedule for SGD, any timm encoder.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.checkpoints import pool_like, read_tensors
from drgrade.device import exact
from drgrade.encoders import create_encoder, width
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Job, Output, Photographs, Start, interpolated
from drgrade.images.augment import Plan, apply, draw, normalise, plan
from drgrade.images.preprocess import Preprocess
from drgrade.images.scaled import at_size
from drgrade.inference import outputs as outputs_of
from drgrade.rng import derive_each
from drgrade.training import Batches, Loader, Module, pictures


class GradedNetwork(nn.Module):
    """Base class of an encoder with a head; a subclass defines the head, its loss and its predictions.

    Input: normalised images (B, 3, H, W). Output: the head's output, (B, *shape).
    """

    encoder: nn.Module
    head: nn.Module
    shape: tuple[int, ...] = ()
    """Shape of the head's output for one image: (), or (K,)."""

    def forward(self, batch: Tensor) -> Tensor:
        """The head's outputs."""
        return self.read(self.encoder(batch))

    def read(self, features: Tensor) -> Tensor:
        """The head's outputs for pooled features (B, D)."""
        outputs: Tensor = self.head(features)
        return outputs

    def loss(self, outputs: Tensor, grades: Tensor) -> Tensor:
        """Training loss, a scalar, of float32 outputs and grades 0-4, int64 (B,)."""
        raise NotImplementedError

    def score(self, outputs: Tensor) -> Tensor:
        """Expected grades (B,), which are rounded to predicted grades."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities (B, 5); rows sum to 1."""
        raise NotImplementedError


class Regressor(GradedNetwork):
    """One linear unit on pooled features, trained by squared error.

    Output: scores (B,), unbounded, about 0-4.
    """

    def __init__(self, encoder: str, start: str) -> None:
        super().__init__()
        self.encoder = create_encoder(encoder, start)
        self.head = regression_head(width(self.encoder))

    def read(self, features: Tensor) -> Tensor:
        """Scores (B,)."""
        return super().read(features).squeeze(1)

    def loss(self, outputs: Tensor, grades: Tensor) -> Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(outputs, grades.to(outputs.dtype))

    def score(self, outputs: Tensor) -> Tensor:
        """The outputs, unchanged."""
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities (B, 5), interpolated so that their expectation is the score."""
        return torch.from_numpy(interpolated(outputs.double().cpu().numpy()))


class Scores(nn.Module):
    """Wraps a network to return the expected grade (B,), for explainers."""

    def __init__(self, network: GradedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        """Expected grades (B,)."""
        return self.network.score(self.network(batch))


class WithFeatures(nn.Module):
    """Wraps a network to return its outputs together with the encoder's features, (B, K + D)."""

    def __init__(self, network: GradedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        """Outputs, then features."""
        features = self.network.encoder(batch)
        outputs = self.network.read(features)
        return torch.cat([outputs.reshape(len(batch), -1), features], dim=1)


def begin(new_network: Callable[[str], GradedNetwork], start: Start) -> GradedNetwork:
    """Create a network with its start weights; another experiment's matching model gives the head too.

    Args:
        new_network: creates one, given ``random``, ``imagenet`` or a weights file for the encoder.
        start: start weights.

    Raises:
        UserError: the weights are missing or do not fit the encoder.
    """
    if start.kind == "experiment" and start.path is not None:
        network, tensors = new_network("random"), read_tensors(start.path)
        pool_like(network, tensors)
        own = network.state_dict()
        if own.keys() == tensors.keys() and all(own[key].shape == tensors[key].shape for key in own):
            network.load_state_dict(tensors)
            return network
    return new_network(start.weights)


def regression_head(features: int) -> nn.Linear:
    """One linear unit: bias 1, weights of standard deviation 0.01, so that scores start near grade 1."""
    head = nn.Linear(features, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias, 1.0)
    return head


class Graded(NamedTuple):
    """A training batch of photographs.

    Attributes:
        pictures: uint8 (B, 3, S, S).
        changes: their augmentation.
        grades: int64 (B,).
    """

    pictures: Tensor
    changes: Plan
    grades: Tensor


class FineTune(Module):
    """Training module: batches are read from the store and augmented on the device; validates every epoch."""

    def __init__(
        self, network: GradedNetwork, params: dict[str, Any], preprocess: Preprocess, training: Job
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = preprocess.mean, preprocess.std
        self.settings = params
        self.seed = training.seed
        self.select_best = params["select"] == "best" and len(training.val) > 0
        self.images = at_size(training.train.images, params["input_size"])
        self.rows = training.train.rows
        self.grades = torch.tensor(training.train.grades)
        self.val_images = at_size(training.val.images, params["input_size"])
        self.val_rows = training.val.rows
        self.val_grades = training.val.grades
        self.best_qwk = -2.0
        self.best_weights: dict[str, torch.Tensor] = {}

    def train_dataloader(self) -> Loader:
        """Batches of this epoch."""
        batches = Batches(len(self.rows), self.settings["batch_size"], self.seed, self.current_epoch)
        return Loader(batches, partial(self.prepare, epoch=self.current_epoch))

    def prepare(self, items: np.ndarray, epoch: int) -> Graded:
        """Read a batch and draw its augmentation; ``items`` are indices of training photographs."""
        draws = draw(self.settings["augment"], derive_each(items, self.seed, "augment", epoch))
        changes = plan(self.settings["augment"], draws)
        return Graded(pictures(self.images, self.rows[items]), changes, self.grades[torch.from_numpy(items)])

    def training_step(self, batch: Graded, _: int) -> torch.Tensor:
        """Training loss of a batch."""
        with exact(batch.pictures.device):
            inputs = apply(batch.pictures, batch.changes, self.settings["input_size"])
            inputs = normalise(inputs, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        outputs = self.network(inputs).float()
        loss = self.network.loss(outputs, batch.grades)
        self.losses.append(loss.detach())
        return loss

    def validate(self) -> dict[str, float]:
        """Validation QWK and MSE after each epoch; keeps the best weights (averages if ``weights_ema``)."""
        if not len(self.val_rows):
            return {}
        network = self.network.eval()
        found = outputs_of(network, self.val_images, self.val_rows, self.mean, self.std, network.shape)
        scores = network.score(torch.from_numpy(found)).double().numpy()
        value = qwk(self.val_grades, to_grades(scores))
        if self.select_best and value > self.best_qwk:
            self.best_qwk = value
            self.best_weights = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
        self.network.train()
        return {"val_qwk": value, "val_mse": float(np.mean((scores - self.val_grades) ** 2))}

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule, both stepped once every ``accumulate`` batches."""
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
        """Save the best epoch so far, for resuming."""
        checkpoint["best"] = {"qwk": self.best_qwk, "weights": self.best_weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best epoch so far."""
        self.best_qwk = checkpoint["best"]["qwk"]
        self.best_weights = checkpoint["best"]["weights"]


def predict(network: GradedNetwork, preprocess: Preprocess, photographs: Photographs) -> Output:
    """Predict photographs: class probabilities (n, 5) and the encoder's features (n, D)."""
    images, features = preprocess.scaled(photographs.images), width(network.encoder)
    shape = (math.prod(network.shape) + features,)
    whole = WithFeatures(network).eval()
    found = outputs_of(whole, images, photographs.rows, preprocess.mean, preprocess.std, shape)
    outputs = torch.from_numpy(found[:, :-features]).reshape(-1, *network.shape)
    return Output(network.probabilities(outputs).double().numpy(), features=found[:, -features:])

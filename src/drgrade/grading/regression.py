"""The network of the grader ``finetune`` and its training: an encoder with a small head, trained on grades.

The recipe of Huang et al. (arXiv 2110.14160): MSE on the grade, midpoints as thresholds, chosen on
validation QWK. By default with AdamW and a one-cycle schedule; the presets have the published SGD.
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
from drgrade.encoders import width
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Job, Moments, Output, Photographs, Start
from drgrade.grading.losses import Criterion, criterion
from drgrade.grading.optimise import Plateau, optimizer, schedule
from drgrade.grading.sampling import class_weights, order, sampling_weights
from drgrade.images.augment import Plan, apply, draw, normalise, plan
from drgrade.images.preprocess import Preprocess
from drgrade.images.scaled import at_size
from drgrade.inference import moments as moments_of
from drgrade.inference import outputs as outputs_of
from drgrade.params import Grade
from drgrade.params.training import Loss
from drgrade.rng import derive_each
from drgrade.schema import GRADES
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

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """Training loss, a scalar, of float32 outputs and grades 0-4, int64 (B,).

        Args:
            outputs: outputs of the head.
            grades: true grades.
            weights: weight of each grade in the loss (5,), given only if ``class_weights`` is set.
        """
        raise NotImplementedError

    def score(self, outputs: Tensor) -> Tensor:
        """Expected grades (B,), which are rounded to predicted grades."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities (B, 5); rows sum to 1."""
        raise NotImplementedError


class EncoderWithHead(GradedNetwork):
    """An encoder and the head of a loss, see :mod:`drgrade.grading.losses`.

    Output for the regression losses: scores (B,), unbounded, about 0-4.

    Args:
        encoder: maps images to pooled features (B, D).
        loss: name of the loss, or a criterion.
        head: replaces the head of the loss; maps features to (B, 1), (B, 5) or (B, 4).
        relu_output: end in a ReLU.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: Loss | Criterion = "mse",
        *,
        head: nn.Module | None = None,
        relu_output: bool = False,
    ) -> None:
        super().__init__()
        self.criterion = criterion(loss) if isinstance(loss, str) else loss
        self.relu_output = relu_output
        self.shape = self.criterion.shape
        self.encoder = encoder
        self.head = self.criterion.new_head(width(encoder)) if head is None else head

    def read(self, features: Tensor) -> Tensor:
        """Outputs of the head, (B, *shape)."""
        outputs = super().read(features).reshape(len(features), *self.shape)
        return outputs.relu() if self.relu_output else outputs

    def loss(self, outputs: Tensor, grades: Tensor, weights: Tensor | None = None) -> Tensor:
        """The criterion's loss."""
        return self.criterion.loss(outputs, grades, weights)

    def score(self, outputs: Tensor) -> Tensor:
        """The criterion's expected grades (B,)."""
        return self.criterion.score(outputs)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The criterion's class probabilities (B, 5)."""
        return self.criterion.probabilities(outputs)


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


class Best(NamedTuple):
    """The best epoch so far: its merit, higher is better, and its weights (none before the first epoch)."""

    merit: float = -math.inf
    weights: dict[str, Tensor] = {}


class Graded(NamedTuple):
    """A training batch of photographs.

    Attributes:
        pictures: uint8 (B, 3, S, S).
        changes: their augmentation.
        grades: int64 (B,).
        weights: weight of each grade in the loss (5,), or None.
    """

    pictures: Tensor
    changes: Plan
    grades: Tensor
    weights: Tensor | None = None


class FineTune(Module):
    """Training module: batches are read from the store and augmented on the device; validates every epoch.

    Args:
        network: trained in place.
        params: the experiment's params, see :class:`drgrade.params.Grade`.
        preprocess: conversion of crops to the network's inputs.
        training: photographs, seed.
    """

    def __init__(self, network: GradedNetwork, params: Grade, preprocess: Preprocess, training: Job) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std, self.axes = preprocess.mean, preprocess.std, preprocess.axes
        self.params, self.augment = params, params.augment.model_dump()
        self.seed = training.seed
        self.images = at_size(training.train.images, params.input_size)
        self.rows = training.train.rows
        self.grades = training.train.grades
        self.counts = np.bincount(self.grades, minlength=len(GRADES))
        self.val_images = at_size(training.val.images, params.input_size)
        self.val_rows = training.val.rows
        self.val_grades = training.val.grades
        self.best = {"best": Best(), "best_mse": Best()}

    def train_dataloader(self) -> Loader:
        """Batches of this epoch; with resampling, of photographs that are drawn anew."""
        epoch, params = self.current_epoch, self.params
        batches = Batches(len(self.rows), params.batch_size, self.seed, epoch)
        chances = sampling_weights(params.sampling, self.counts, epoch)
        drawn = None if chances is None else order(self.grades, chances, self.seed, epoch)
        weights = class_weights(params.class_weights, self.counts, epoch, params.class_weights_decay)
        return Loader(batches, partial(self.prepare, epoch=epoch, drawn=drawn, weights=weights))

    def prepare(
        self,
        positions: np.ndarray,
        epoch: int,
        drawn: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Graded:
        """Read a batch and draw its augmentation.

        Args:
            positions: training photographs of the batch; positions in ``drawn`` if that is given.
            epoch: counted from 0.
            drawn: the epoch's resampled training photographs.
            weights: weight of each grade in the loss (5,).
        """
        items = positions if drawn is None else drawn[positions]
        # by position, so that a photograph that is drawn twice is not augmented in the same way
        draws = draw(self.augment, derive_each(positions, self.seed, "augment", epoch))
        changes = plan(self.augment, draws, self.axes)
        grades = torch.from_numpy(self.grades[items])
        weighted = None if weights is None else torch.from_numpy(weights.astype(np.float32))
        return Graded(pictures(self.images, self.rows[items]), changes, grades, weighted)

    def training_step(self, batch: Graded, _: int) -> torch.Tensor:
        """Training loss of a batch."""
        with exact(batch.pictures.device):
            inputs = apply(batch.pictures, batch.changes, self.params.input_size)
            inputs = normalise(inputs, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        outputs = self.network(inputs).float()
        weighted = () if batch.weights is None else (batch.weights,)
        loss = self.network.loss(outputs, batch.grades, *weighted)
        self.losses.append(loss.detach())
        return loss

    def validate(self) -> dict[str, float]:
        """Validation QWK and MSE after each epoch; keeps the best weights (averages if ``weights_ema``)."""
        if not len(self.val_rows):
            return {}
        network = self.network.eval()
        found = outputs_of(network, self.val_images, self.val_rows, self.mean, self.std, network.shape)
        scores = network.score(torch.from_numpy(found)).double().numpy()
        self.network.train()
        value = qwk(self.val_grades, to_grades(scores))
        error = float(np.mean((scores - self.val_grades) ** 2))
        for name, merit in (("best", value), ("best_mse", -error)):
            wanted = name in self.params.checkpoints or (name == "best" and self.params.select == "best")
            if wanted and merit > self.best[name].merit:
                weights = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
                self.best[name] = Best(merit, weights)
        return {"val_qwk": value, "val_mse": error}

    def end_epoch(self, loss: float) -> None:
        """Lower the learning rate where the training loss has stopped falling (schedule ``plateau``)."""
        timed = self.lr_schedulers()
        if isinstance(timed, Plateau):
            timed.judge(loss)

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule; both are stepped once every ``accumulate`` batches."""
        params = self.params
        tuned = optimizer(
            self.network, name=params.optimizer, lr=params.lr, weight_decay=params.weight_decay,
            momentum=params.momentum, layer_decay=params.layer_decay, decay=params.decay,
        )  # fmt: skip
        batches = len(Batches(len(self.rows), params.batch_size, self.seed, 0))
        steps = math.ceil(batches / params.accumulate)
        timed = schedule(tuned, params.schedule, steps, params.epochs)
        return [tuned], [{"scheduler": timed, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best epochs so far, for resuming."""
        checkpoint["best"] = {name: tuple(best) for name, best in self.best.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best epochs so far."""
        self.best = {name: Best(*best) for name, best in checkpoint["best"].items()}


def predict(network: GradedNetwork, preprocess: Preprocess, photographs: Photographs) -> Output:
    """Predict photographs: class probabilities (n, 5) and the encoder's features (n, D).

    With test-time augmentation both are computed from the means over the transforms.
    """
    images, features = preprocess.scaled(photographs.images), width(network.encoder)
    shape = (math.prod(network.shape) + features,)
    whole = WithFeatures(network).eval()
    found = outputs_of(
        whole, images, photographs.rows, preprocess.mean, preprocess.std, shape, preprocess.changes()
    )
    outputs = torch.from_numpy(found[:, :-features]).reshape(-1, *network.shape)
    return Output(network.probabilities(outputs).double().numpy(), features=found[:, -features:])


def moments(
    network: GradedNetwork, preprocess: Preprocess, photographs: Photographs, changes: Plan | None
) -> Moments:
    """Moments of the encoder's features over transforms, see :meth:`.Grader.moments`."""
    return moments_of(
        network.encoder.eval(),
        preprocess.scaled(photographs.images),
        photographs.rows,
        preprocess.mean,
        preprocess.std,
        (width(network.encoder),),
        changes,
    )

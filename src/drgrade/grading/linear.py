"""Regress the grade on the features of a frozen encoder with one linear unit.

The linear evaluation of Huang et al. (arXiv 2110.14160), for which no code was published. Loss (MSE),
optimiser (Adam with a cosine schedule) and initialisation follow the closest published code of its authors
(SSiT, arXiv 2210.10969). Deviations: features are computed once, in evaluation mode and without augmentation;
the learning rate is chosen on validation; features are centred and divided by one common scale.

The scale, from the training photographs alone, makes learning rates comparable between encoders. It is a
single number, because with one percent of the labels each feature's own standard deviation is estimated from
a few photographs: dividing by it would blow up the features that happen to vary little among them.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from drgrade.grading.base import GRADERS, Explainable, Grader, Job, Moments, Output, Photographs, interpolated
from drgrade.params import Encoded

if TYPE_CHECKING:
    from torch import nn

    from drgrade.grading.probe import Probe
    from drgrade.images.augment import Plan

log = logging.getLogger(__name__)


class Params(Encoded):
    """A linear regression of the grade on the features of a frozen encoder."""

    grader: Literal["linear"] = "linear"
    """The module of ``drgrade.grading``."""
    lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.0003, 0.001, 0.003, 0.01]
    """Learning rates of Adam; the best of several by validation QWK, the first where nothing validates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of all weights."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the features."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Features a step."""


@GRADERS.register("linear")
class Linear(Grader):
    """Trains the head of a :class:`~drgrade.grading.probe.Probe`; interpolates its score to probabilities."""

    Params = Params
    network: "Probe"

    def fit(self, job: Job) -> None:
        """Train on features; choose the learning rate on validation, or take the first without such data."""
        import torch

        from drgrade.device import device
        from drgrade.grading.features import features
        from drgrade.grading.probe import regress
        from drgrade.seeding import seed_everything

        seed_everything(job.seed, "head")  # as in finetune: equal seeds give equal random encoders
        self.network = self._probe(job.start.weights).to(device())
        found = features(self.network.encoder, job.train.images, job.train.rows)
        self.network.adapt(found)
        inputs = self.network.scaled(torch.from_numpy(found).to(device()))
        grades = torch.tensor(job.train.grades, dtype=torch.float32).to(device())
        heads = regress(inputs, grades, self.network.head, self.params, job.seed)
        self.network.head.load_state_dict(heads[self._chosen(heads, job)].state_dict())

    def _chosen(self, heads: "dict[float, nn.Linear]", job: Job) -> float:
        """The best learning rate on validation."""
        import torch

        from drgrade.device import device
        from drgrade.grading.features import best, features

        if not len(job.val):
            return float(self.params.lr[0])
        found = features(self.network.encoder, job.val.images, job.val.rows)
        with torch.inference_mode():
            inputs = self.network.scaled(torch.from_numpy(found).to(device()))
            scores = {lr: one(inputs).squeeze(1).double().cpu().numpy() for lr, one in heads.items()}
        lr, agreement = best(scores, job.val.grades)
        log.info("%s  lr %g of %s  val_qwk %.4g", job.name, lr, list(heads), agreement[lr])
        measured = {f"val_qwk_lr{one:g}": value for one, value in agreement.items()}
        job.run.metrics({**measured, "lr": lr, "val_qwk": agreement[lr]})
        return lr

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) and the frozen encoder's features (n, D)."""
        import torch

        from drgrade.grading.features import features

        found = features(self.network.encoder, photographs.images, photographs.rows)
        with torch.inference_mode():
            read = self.network.head.cpu()(self.network.cpu().scaled(torch.from_numpy(found))).squeeze(1)
        return Output(interpolated(read.double().numpy()), features=found)

    def explainable(self) -> Explainable:
        """The whole network."""
        return Explainable(self.network, self.preprocess)

    def moments(self, photographs: Photographs, changes: "Plan | None") -> Moments:
        """Moments of the frozen encoder's features."""
        from drgrade.grading.features import moments

        return moments(self.network.encoder, photographs.images, photographs.rows, changes)

    def tensors(self) -> "nn.Module":
        """The network."""
        return self.network

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create the network with random weights, which loading overwrites."""
        self.network = self._probe("random")

    def _probe(self, start: str) -> "Probe":
        from drgrade.grading.features import Frozen
        from drgrade.grading.probe import Probe

        frozen = Frozen(self.params.encoder, start, self.params.input_size, blocks=True)
        frozen.mean, frozen.std = list(self.preprocess.mean), list(self.preprocess.std)
        frozen.changes = self.preprocess.changes()
        return Probe(frozen)

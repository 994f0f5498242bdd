"""Regress the grade on the features of both eyes from a frozen encoder: the eye-pair fusion of Huang et al.

Diagnostics 2023, 13(10):1664, arXiv 2110.14160. Deviations: the encoder stays in evaluation mode throughout,
where the published code lets BatchNorm's running statistics drift; it may be of any width; its features are
computed once, from the plain photograph and, on request, from a few augmented views, instead of anew in each
epoch; where the fellow eye is missing, the photograph's own features stand in for it.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from drgrade.grading.base import GRADERS, Grader, Job, Moments, Output, Photographs, interpolated
from drgrade.params import Encoded

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from drgrade.grading.features import Frozen
    from drgrade.grading.pair_heads import PairHead
    from drgrade.images.augment import Plan

log = logging.getLogger(__name__)


class Params(Encoded):
    """A network on the features of both eyes from a frozen encoder."""

    grader: Literal["fusion"] = "fusion"
    """The module of ``drgrade.grading``."""
    views: Annotated[int, Field(ge=1)] = 1
    """Views of each training photograph: the first as in prediction, and augmented ones. Each epoch takes one
    of them at random for each eye."""
    hidden: Annotated[list[Annotated[int, Field(ge=2, multiple_of=2)]], Field(min_length=1)] = [2048, 512]
    """Units of the hidden layers; the larger one of each two goes on."""
    epochs: Annotated[int, Field(ge=1)] = 50
    """Passes over the features."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Photographs a step."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Learning rate of SGD, constant."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of all parameters."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""


@GRADERS.register("fusion")
class Fusion(Grader):
    """Trains a :class:`~drgrade.grading.pair_heads.PairHead`; keeps the best epoch by validation QWK."""

    Params = Params
    frozen: "Frozen"
    head: "PairHead"

    def fit(self, job: Job) -> None:
        """Compute features, then train the head on them."""
        import torch

        from drgrade.device import device
        from drgrade.grading.pair_heads import PairRecipe, fit_pair_head
        from drgrade.seeding import seed_everything

        seed_everything(job.seed, "head")  # as in finetune: equal seeds give equal random encoders
        self.frozen = self._frozen(job.start.weights)
        views = self._views(job)
        self.head = self._new_head(self.frozen.width).to(device())
        targets = torch.tensor(job.train.grades, dtype=torch.float32).to(device())
        recipe = PairRecipe(**{key: getattr(self.params, key) for key in PairRecipe._fields})
        keep = Keep(self.head, job, self._validation(job), best=self.params.select == "best")
        fit_pair_head(self.head, drawn_pairs(views, job), targets, recipe, job.seed, keep)
        if keep.weights:
            self.head.load_state_dict(keep.weights)

    def _views(self, job: Job) -> "Tensor":
        """Features of the views of the training photographs, (views, n, D), on the device."""
        import torch

        from drgrade.device import device
        from drgrade.grading.features import features

        plain = torch.from_numpy(features(self.frozen, job.train.images, job.train.rows)).to(device())
        settings = self.params.augment.model_dump()
        others = [
            augmented_features(self.frozen, job.train, settings, job.seed, view)
            for view in range(1, self.params.views)
        ]
        return torch.stack([plain, *others])

    def _validation(self, job: Job) -> "Tensor | None":
        """Inputs of the validation photographs on the device; None where there are none."""
        import torch

        from drgrade.device import device

        return torch.from_numpy(self._inputs(job.val)).to(device()) if len(job.val) else None

    def _inputs(self, photographs: Photographs) -> np.ndarray:
        """Features of both eyes, without training augmentation, float32 (n, 2 D)."""
        from drgrade.grading.features import features

        found = features(self.frozen, photographs.images, photographs.rows)
        return np.concatenate([found, found[fellow_eye(photographs)]], axis=1)

    def predict(self, photographs: Photographs) -> Output:
        """Probabilities (n, 5) and the features of both eyes (n, 2 D)."""
        import torch

        found = self._inputs(photographs)
        with torch.inference_mode():
            scores = self.head.cpu()(torch.from_numpy(found))
        return Output(interpolated(scores.double().numpy()), features=found)

    def moments(self, photographs: Photographs, changes: "Plan | None") -> Moments:
        """Moments of the frozen encoder's features, of each photograph alone."""
        from drgrade.grading.features import moments

        return moments(self.frozen, photographs.images, photographs.rows, changes)

    def tensors(self) -> "nn.Module":
        """Encoder and head."""
        from torch import nn

        return nn.ModuleDict({"encoder": self.frozen, "head": self.head})

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create encoder and head with random weights, which loading overwrites."""
        self.frozen = self._frozen("random")
        self.head = self._new_head(self.frozen.width)

    def _frozen(self, start: str) -> "Frozen":
        from drgrade.grading.features import Frozen

        frozen = Frozen(self.params.encoder, start, self.params.input_size)
        frozen.mean, frozen.std = list(self.preprocess.mean), list(self.preprocess.std)
        frozen.changes = self.preprocess.changes()
        return frozen

    def _new_head(self, features: int) -> "PairHead":
        from drgrade.grading.pair_heads import PairHead

        return PairHead(2 * features, self.params.hidden)


class Keep:
    """After each epoch: validates, reports, and keeps the best weights.

    Args:
        head: the network that is trained.
        job: its training.
        inputs: those of the validation photographs, (n, W); None where there are none.
        best: whether to keep the weights of the best epoch; otherwise, and without validation, ``weights``
            stays empty.
    """

    def __init__(self, head: "PairHead", job: Job, inputs: "Tensor | None", *, best: bool) -> None:
        self.head, self.job, self.inputs, self.best = head, job, inputs, best
        self.highest = -np.inf
        self.weights: dict[str, torch.Tensor] = {}

    def __call__(self, epoch: int, loss: float) -> None:
        """Take note of an epoch with this mean training loss."""
        measured = {"loss": loss} | self._validated()
        value = measured.get("val_qwk", -np.inf)
        if self.best and value > self.highest:
            self.highest = value
            self.weights = {key: tensor.clone() for key, tensor in self.head.state_dict().items()}
        shown = "  ".join(f"{key} {number:.4g}" for key, number in measured.items())
        log.info("%s  epoch %d  %s", self.job.name, epoch + 1, shown)
        self.job.run.metrics(measured, step=epoch)

    def _validated(self) -> dict[str, float]:
        import torch

        from drgrade.evaluate.metrics import qwk, to_grades

        if self.inputs is None:
            return {}
        with torch.inference_mode():
            scores = self.head(self.inputs).double().cpu().numpy()
        grades = self.job.val.grades
        return {"val_qwk": qwk(grades, to_grades(scores)), "val_mse": float(np.mean((scores - grades) ** 2))}


def fellow_eye(photographs: Photographs) -> np.ndarray:
    """Position of each photograph's fellow eye, its own where there is none, int64 (n,)."""
    from drgrade.grading.pairing import fellow

    return fellow(photographs.partner(), np.ones(len(photographs), bool))


def drawn_pairs(views: "Tensor", job: Job) -> "Callable[[int, np.ndarray], Tensor]":
    """Inputs of training batches: in each epoch a view drawn for each eye, independently of the other's.

    Args:
        views: features (views, n, D).
        job: the training.

    Returns:
        A function that gives, for an epoch and positions of photographs (B,), their inputs (B, 2 D).
    """
    import torch

    from drgrade.rng import derive_each, uniforms

    other = fellow_eye(job.train)

    def inputs(epoch: int, items: np.ndarray) -> "Tensor":
        draws = uniforms(derive_each(items, job.seed, "views", epoch), 2)
        chosen = [(draws * len(views)).astype(np.int64), np.stack([items, other[items]])]
        view, eye = (torch.from_numpy(part).to(views.device) for part in chosen)
        return views[view, eye].permute(1, 0, 2).flatten(1)  # (2, B, D) to (B, 2 D)

    return inputs


def augmented_features(
    frozen: "Frozen", photographs: Photographs, settings: Mapping[str, Any], seed: int, view: int
) -> "Tensor":
    """Features of an augmented view of photographs, float32 (n, D), on the device.

    Args:
        frozen: the encoder; moved to the accelerator where there is one.
        photographs: n photographs.
        settings: the keys of ``drgrade.params.Augment``.
        seed: seed of the augmentation.
        view: number of the view; each has other random numbers.
    """
    import torch

    from drgrade.device import device, exact
    from drgrade.images.augment import augment, normalise
    from drgrade.images.scaled import at_size
    from drgrade.inference import CPU_BATCH, batch_size, run_batches
    from drgrade.rng import derive_each
    from drgrade.training import pictures

    images, rows = at_size(photographs.images, frozen.size), photographs.rows
    frozen.to(device())

    def forward(items: np.ndarray) -> "Tensor":
        with exact(device()):
            seeds = derive_each(items, seed, "augment", view)
            batch = augment(pictures(images, rows[items]).to(device()), settings, seeds, frozen.size)
            batch = normalise(batch, frozen.mean, frozen.std)
        return frozen(batch.contiguous(memory_format=torch.channels_last)).float()

    items, size = np.arange(len(rows)), batch_size(frozen.size, CPU_BATCH)
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    return torch.cat(list(run_batches(forward, batches)))

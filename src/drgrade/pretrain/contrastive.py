"""Shared by all contrastive methods: head, losses, optimisers, schedule, training loop.

The projections of two views of a sample are pulled together and those of different samples pushed apart
(SimCLR, Chen et al., ICML 2020, arXiv 2002.05709), with the settings of Huang et al., MICCAI 2021
(arXiv 2107.08274).
"""

import logging
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.device import exact
from drgrade.distributed import launch
from drgrade.encoders import create_encoder, normalisation, width
from drgrade.errors import UserError
from drgrade.gradient_cache import chunked_backward
from drgrade.images.augment import normalise
from drgrade.pretrain.base import Graded
from drgrade.pretrain.monitor import Monitor, save_views
from drgrade.pretrain.views import Pairs, made
from drgrade.pretrain.watch import Watch, unwatched
from drgrade.rng import derive_each
from drgrade.seeding import seed_everything
from drgrade.training import Batches, Loader, Module, compile_network, fit

log = logging.getLogger(__name__)

PROJECTION = 128
"""Dimension of the projections."""


class Projector(nn.Module):
    """Encoder and projection head: Linear-ReLU-Linear (``mlp``) or one Linear (``linear``).

    Input: normalised images (B, 3, P, P). Output: features (B, D) and projections (B, 128), not yet of
    unit length.
    """

    def __init__(self, encoder: nn.Module, head: str = "mlp") -> None:
        super().__init__()
        features = width(encoder)
        self.encoder = encoder
        last = nn.Linear(features, PROJECTION)
        self.head = (
            last if head == "linear" else nn.Sequential(nn.Linear(features, features), nn.ReLU(), last)
        )

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and projections (B, 128)."""
        features = self.encoder(batch)
        return features, self.head(features)


class SupCon(nn.Module):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2).

    Positives of a view are all other views of its class in the batch, over all devices; if every sample is a
    class of its own this is NT-Xent (Chen et al., equation 1). lightly has only NT-Xent, and indexes by
    boolean masks, which makes the host wait for the GPU in each step.

    Args:
        temperature: divisor of the cosine similarities.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Mean over all views of the mean over their positives, a scalar.

        Args:
            first: projections of the first view of each sample, (n, d).
            second: projections of the second view, (n, d).
            kinds: class of each sample, integers (n,); None: every sample is a class of its own.
        """
        from lightly.utils import dist

        views = nn.functional.normalize(torch.cat([first, second]), dim=1)
        if kinds is None:
            kinds = torch.arange(len(first), device=first.device) + dist.rank() * len(first)
        labels = kinds.repeat(2)
        everyone, everyones = views, labels
        if dist.world_size() > 1:
            everyone, everyones = torch.cat(dist.gather(views)), torch.cat(dist.gather(labels))
        logits = views @ everyone.T / self.temperature  # (2n, 2n * devices)
        itself = torch.zeros_like(logits, dtype=torch.bool)
        own = torch.arange(len(views), device=views.device)
        itself[own, own + dist.rank() * len(views)] = True
        alike = (labels[:, None] == everyones) & ~itself
        others = logits.masked_fill(itself, float("-inf")).logsumexp(dim=1, keepdim=True)
        return -(((logits - others) * alike).sum(1) / alike.sum(1)).mean()


def optimiser(network: nn.Module, params: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser that ``params`` names, all with momentum 0.9 (Nesterov; AdamW: betas 0.9 and 0.999).

    With sgd, weight decay applies to all parameters, as published; with lars and adamw not to biases and
    normalisation layers, which lars also excludes from its layer-wise scaling (Chen et al., 2020).
    """
    from timm.optim import create_optimizer_v2

    name = {"sgd": "sgd", "lars": "nlars", "adamw": "adamw"}[params["optimiser"]]
    return create_optimizer_v2(
        network,
        name,
        lr=params["lr"],
        weight_decay=params["weight_decay"],
        momentum=0.9,
        filter_bias_and_bn=name != "sgd",
    )


def schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over the fraction ``warmup`` of ``steps``, then cosine decay to 0.

    With n warm-up steps the first step has 1/n of the peak, steps n and n + 1 have the peak; zero would be
    reached one step after the last, so that no step has a learning rate of zero.
    """
    from lightly.utils.scheduler import CosineWarmupScheduler

    return CosineWarmupScheduler(
        optimizer, warmup_epochs=round(warmup * steps), max_epochs=steps + 1, start_value=1, end_value=0
    )


class RecordingProjector(nn.Module):
    """Returns projections only, for :func:`chunked_backward`; records all outputs for the monitor."""

    def __init__(self, network: Projector) -> None:
        super().__init__()
        self.network = network
        self.features: list[Tensor] = []
        self.projections: list[Tensor] = []

    def forward(self, batch: Tensor) -> Tensor:
        """Projections (B, 128)."""
        features, projections = self.network(batch)
        self.features.append(features.detach())
        self.projections.append(projections.detach())
        return projections  # type: ignore[no-any-return]


class Batch(NamedTuple):
    """Two views of each of n samples, and the samples' classes for losses that use them."""

    pairs: Pairs
    kinds: Tensor | None


class Contrast(Module):
    """Training module. A subclass defines the samples of an epoch and two views of each.

    Args:
        network: encoder and head.
        params: a block of :class:`drgrade.params.Contrastive`.
        graded: graded photographs for monitoring the encoder; None for no monitoring.
        size: side in pixels to which whole crops are resized for monitoring.

    Attributes:
        ahead: whether views are made in the background.
    """

    ahead = True

    def __init__(
        self, network: Projector, params: dict[str, Any], graded: Graded | None = None, size: int = 0
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean, self.std = normalisation(params["encoder"])
        self.settings = params
        self.seed = params["seed"]
        self.criterion = SupCon(params["temperature"])
        self.monitor = Monitor(params["temperature"])
        self.watch = Watch(graded, params["encoder"], size, params["knn_every"])
        self.automatic_optimization = params["chunk"] is None

    @abstractmethod
    def samples(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, one row for each (n, ...); n is the same for all epochs."""

    @abstractmethod
    def pairs(self, samples: np.ndarray, epoch: int) -> Pairs:
        """Two views of each of n samples, or the data to make them; runs on the host, in the background."""

    def views(self, pairs: Pairs) -> Tensor:
        """Two augmented views of each of n samples, (2n, 3, P, P) in 0-1 on the device, first views first."""
        return made(pairs)

    def kinds(self, samples: np.ndarray) -> Tensor | None:
        """Classes of n samples, int64 (n,), for :class:`SupCon`; None: every sample is its own class."""
        return None

    def seeds(self, keys: np.ndarray, epoch: int) -> np.ndarray:
        """Seeds of two views for each row of ``keys`` (n, m), int64 (n, 2), from (seed, epoch, key, view)."""
        return np.stack([derive_each(keys, self.seed, "view", epoch, view) for view in (0, 1)], axis=1)

    def train_dataloader(self) -> Loader:
        """Batches of this epoch."""
        epoch = self.current_epoch
        samples = self.samples(epoch)
        batches = self._batches(len(samples), epoch)
        return Loader(batches, lambda items: self.prepare(samples[items], epoch), ahead=self.ahead)

    def prepare(self, samples: np.ndarray, epoch: int) -> Batch:
        """Read a batch of an epoch's samples and draw its augmentation."""
        return Batch(self.pairs(samples, epoch), self.kinds(samples))

    def _batches(self, samples: int, epoch: int) -> Batches:
        return Batches(samples, self.settings["batch_size"], self.seed, epoch, True)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Loss of a batch."""
        with exact(self.device):
            views = self.views(batch.pairs)
            inputs = normalise(views, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        if self.current_epoch == 0 and number == 0 and self.trainer.is_global_zero:
            self._show(views)
        if self.settings["chunk"] is not None:
            return self._step_in_chunks(inputs, batch.kinds)
        features, projections = self.network(inputs)
        loss = self._loss(projections, batch.kinds)
        self._record(loss, features, projections)
        return loss

    def _loss(self, projections: Tensor, kinds: Tensor | None) -> Tensor:
        """Contrastive loss of projections (2n, 128), first views first."""
        first, second = projections.float().chunk(2)
        with exact(first.device):  # bfloat16's 8 bits are too few for cosine / 0.07
            loss: Tensor = self.criterion(first, second, kinds)
        return loss

    def _step_in_chunks(self, batch: Tensor, kinds: Tensor | None) -> Tensor:
        """Do a whole optimiser step with activations of only one chunk of the batch in memory at a time."""
        network = RecordingProjector(self.network)
        chunks = batch.split(self.settings["chunk"])
        loss = chunked_backward(
            network,
            chunks,
            lambda projections: self._loss(projections, kinds),
            backward=self.manual_backward,
        )
        optimizer, plan = self.optimizers(), self.lr_schedulers()
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        plan.step()  # type: ignore[union-attr, call-arg]
        features, projections = (
            torch.cat(parts[: len(chunks)]) for parts in (network.features, network.projections)
        )
        self._record(loss, features, projections)
        return loss

    def _record(self, loss: Tensor, features: Tensor, projections: Tensor) -> None:
        """Record loss and monitoring statistics for the epoch's log line."""
        self.losses.append(loss.detach())
        first, second = projections.float().chunk(2)
        self.monitor.see(features[: len(first)], first, second)

    def _show(self, views: Tensor) -> None:
        """Save an image of the first views as an artifact of the run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "views.png"
            save_views(views, path)
            self.run.artifact(path)

    def validate(self) -> dict[str, float]:
        """Monitoring statistics of this epoch (over the first process's share), and the k-NN's QWK."""
        return self.monitor.values() | self.watch.values(self.network.encoder, self.current_epoch)

    def configure_optimizers(self) -> Any:
        """The chosen optimiser; the learning rate follows :func:`schedule`, stepped every batch."""
        optimizer = optimiser(self.network, self.settings)
        steps = len(self._batches(len(self.samples(0)), 0)) * self.settings["epochs"]
        plan = schedule(optimizer, steps, self.settings["warmup"])
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


def projector(params: dict[str, Any]) -> Projector:
    """Create the encoder with its start weights and a new head; equal seeds give equal weights.

    Raises:
        UserError: the encoder takes images of one size only, or its weights are missing or do not fit.
    """
    import timm

    name = params["encoder"]
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    # lets a vision transformer interpolate its position embeddings; its weights keep their own size
    options = {"dynamic_img_size": True} if config and config.fixed_input_size else {}
    seed_everything(params["seed"], "head")
    try:
        return Projector(create_encoder(name, params["start"], **options), params["head"])
    except TypeError:
        raise UserError(
            f"encoder {name!r}: takes images of one size only; use a convolutional network, or a plain "
            f"vision transformer such as vit_small_patch16_224"
        ) from None


def train(module: Contrast, *, name: str, key: tuple[Any, ...], run: Any) -> nn.Module:
    """Train and return the encoder, with averaged weights if ``weights_ema`` is set; the head is dropped.

    Raises:
        UserError: ``chunk`` is set with several processes, or ``compile`` without a C++ compiler.
    """
    settings = module.settings
    if settings["chunk"] is not None and launch().processes > 1:
        raise UserError(
            f"pretrain: chunk {settings['chunk']} is for one process; start one, or set chunk to null"
        )
    if settings["compile"]:
        compile_network(module.network, dynamic=False)  # every batch is of one size
    fit(
        module,
        name=name,
        epochs=settings["epochs"],
        seed=module.seed,
        key=(*key, unwatched(settings)),
        run=run,
        weights_ema=settings["weights_ema"],
    )
    return module.network.encoder

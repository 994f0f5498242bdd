"""The training loop that every network but the detector shares: Lightning, made resumable and exact.

A training that is killed resumes at its last finished epoch and ends with the weights of the
undisturbed run, bit for bit on one CPU type: batches, augmentation and dropout are drawn from
(seed, epoch, sample), and torch's threads are a fixed number. Several processes share every batch
(:mod:`drgrade.distributed`) and take the step that one would take.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drgrade.background import read_ahead
from drgrade.device import half_precision, use_fast_kernels
from drgrade.distributed import broadcast_buffers, launch, mean_over_processes, rank, synchronised, world
from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.images.store import Pictures
from drgrade.memory import keep_memory
from drgrade.seeding import numpy_rng, seed_everything

log = logging.getLogger(__name__)

CHECKPOINTS = Path(".cache/drgrade/training")


class Batches(Sequence[np.ndarray]):
    """The batches of one epoch: arrays of row numbers in an order drawn from (seed, epoch)."""

    def __init__(self, rows: int, size: int, seed: int, epoch: int, drop_last: bool = False) -> None:
        order = numpy_rng(seed, "order", epoch).permutation(rows)
        self.batches = [order[start : start + size] for start in range(0, rows, size)]
        # BatchNorm cannot normalise a batch of one
        if (
            len(self.batches) > 1
            and (drop_last or len(self.batches[-1]) == 1)
            and len(self.batches[-1]) < size
        ):
            self.batches.pop()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: Any) -> Any:
        return self.batches[item]


def share(batches: Sequence[np.ndarray], place: int, processes: int) -> list[np.ndarray]:
    """What one of several processes gets of every batch: as much as the others, theirs and its own in order
    being the batch. Of a last, smaller batch the rest that cannot be shared out is left out.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """
    size = len(batches[0])
    if size % processes:
        raise UserError(
            f"batch_size: {processes} processes cannot share {size} evenly; take a multiple, or start fewer"
        )
    even = [batch[: len(batch) // processes * processes] for batch in batches]
    return [np.split(batch, processes)[place] for batch in even if len(batch)]


class Loader:
    """What an epoch's steps learn from, one batch after the other.

    The next batches are read, decoded and drawn by a thread while a step runs, so that the device need not
    wait. One of several processes gets its share of each batch.

    Args:
        batches: row numbers of each batch.
        prepare: from these to what a step is given; its tensors are moved to the device by Lightning.
        ahead: whether to prepare in the background.

    Attributes:
        batches: row numbers of each batch of this process.
    """

    def __init__(
        self,
        batches: Sequence[np.ndarray],
        prepare: Callable[[np.ndarray], Any] = lambda items: items,
        *,
        ahead: bool = True,
    ) -> None:
        self.batches = share(batches, rank(), world()) if world() > 1 else batches
        self.prepare, self.ahead = prepare, ahead

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return read_ahead(self._batch, self.batches) if self.ahead else map(self._batch, self.batches)

    def _batch(self, items: np.ndarray) -> Any:
        """A batch in memory that a GPU can fetch by itself, while the host goes on."""
        batch = self.prepare(items)
        return apply_to_collection(batch, Tensor, Tensor.pin_memory) if torch.cuda.is_available() else batch


class EpochSeed(Callback):
    """Re-seed the global generators per epoch, so that a resumed epoch draws what it would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed for this epoch; processes hold different images, and draw differently for them."""
        other = (trainer.global_rank,) if trainer.global_rank else ()
        seed_everything(self.seed, "epoch", trainer.current_epoch, *other)


class Progress(Callback):
    """How fast this training goes: images of the epoch and seconds since it and the process began."""

    def __init__(self) -> None:
        self.images, self.epochs = 0, 0
        self.began = self.epoch_began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self.images, self.epoch_began = 0, time.monotonic()
        if not self.epochs:
            self.began = self.epoch_began

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what all processes have seen."""
        loader: Any = trainer.train_dataloader
        self.images += len(loader.batches[batch_idx]) * trainer.world_size

    def rate(self) -> float:
        """Images a second of this epoch so far."""
        return self.images / max(time.monotonic() - self.epoch_began, 1e-9)

    def left(self, epochs: int) -> timedelta:
        """Time for ``epochs`` more at the mean pace of this process; asked once at the end of each."""
        self.epochs += 1
        return timedelta(seconds=round((time.monotonic() - self.began) / self.epochs * epochs))


class WeightsEMA(Callback):
    """Exponential moving average of weights and BatchNorm statistics over the steps, kept in the checkpoint.

    Args:
        decay: share of the old average that stays at a step, 0-1.
    """

    def __init__(self, decay: float) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.average: dict[str, torch.Tensor] = {}
        self.step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the start weights, or from the checkpoint's average."""
        own = pl_module.state_dict()
        kept = self.average or own
        self.average = {key: kept[key].detach().to(value.device, copy=True) for key, value in own.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on once a step of the optimiser."""
        if trainer.global_step == self.step:
            return  # gradients are still being added up
        self.step = trainer.global_step
        own = pl_module.state_dict()
        moving = [key for key, value in own.items() if value.is_floating_point()]
        with torch.no_grad():
            self.update([self.average[key] for key in moving], [own[key] for key in moving], None)
            for key in own.keys() - set(moving):
                self.average[key].copy_(own[key])

    @contextmanager
    def applied(self, module: torch.nn.Module) -> Iterator[None]:
        """``module`` with the averages in place of its weights, for a while."""
        own = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.load_state_dict(self.average)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.average, self.step = state_dict["average"], state_dict["step"]


class AtomicCheckpoint(TorchCheckpointIO):
    """Checkpoints that are replaced at once.

    Lightning's own pass through the system's temporary folder: from another disk they are copied over the
    last good one, and a kill in the middle leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside ``path``, then rename."""
        with atomic_write(Path(path)) as partial:
            torch.save(checkpoint, partial)


class Module(pl.LightningModule):
    """A network in training: says what each epoch measured, in the log and in MLflow."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[torch.Tensor] = []
        self.label = ""
        self.run: Any = None
        self.progress = Progress()
        self.average: WeightsEMA | None = None
        self.weight = 1.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Weigh the batch by its share of the images that make this step."""
        together = self.trainer.accumulate_grad_batches
        loader: Any = self.trainer.train_dataloader
        batches, first = loader.batches, batch_idx - batch_idx % together
        sizes = [len(batches[place]) for place in range(first, min(first + together, len(batches)))]
        self.weight = sizes[batch_idx - first] * together / sum(sizes)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning divides by the number of batches as if all were of one size and the last step had all."""
        super().backward(loss * self.weight, *args, **kwargs)

    def validate(self) -> dict[str, float]:
        """Metrics of the finished epoch beside the training loss; none unless overridden.

        Every process measures, on all data.
        """
        return {}

    def on_train_epoch_end(self) -> None:
        """Measure and report; what is measured are the averaged weights where they are averaged."""
        values = {"loss": float(mean_over_processes(torch.stack(self.losses).mean()))}
        speed = {"images_per_s": self.progress.rate()}  # the loss has waited for the device
        self.losses.clear()
        broadcast_buffers(self)
        with self.average.applied(self) if self.average else nullcontext():
            values |= self.validate()
        values |= {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], **speed}
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 0
        left = self.progress.left(epochs - epoch)
        if self.trainer.is_global_zero:
            log.info("%s  epoch %d/%d  %s  %s left", self.label, epoch, epochs, _shown(values), left)
            self.run.metrics(values, step=self.current_epoch)


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())


def fingerprint(*parts: Any) -> str:
    """A folder name for checkpoints: it changes with anything that would make resuming wrong."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fit(
    module: Module,
    *,
    name: str,
    epochs: int,
    seed: int,
    key: Sequence[Any],
    run: Any,
    accumulate: int = 1,
    weights_ema: float | None = None,
) -> None:
    """Train ``module`` for ``epochs``, from its last finished epoch where there is one.

    Args:
        module: brings its own ``train_dataloader`` (asked anew each epoch) and optimiser.
        name: what the log calls this training.
        epochs: passes over the data.
        seed: of everything random.
        key: all that identifies this training (params, digests of inputs); see :func:`fingerprint`.
        run: a :class:`drgrade.tracking.Run`.
        accumulate: batches whose gradients, weighed by their sizes, make one step: for losses that are means
            over the batch it is that of one big batch, BatchNorm apart. An epoch has
            ceil(batches / accumulate) steps; schedules must count these. For contrastive losses see
            :func:`drgrade.gradient_cache.chunked_backward`.
        weights_ema: decay of an exponential moving average of the weights; it is what validates and what
            ``module`` holds at the end. None: the weights themselves.

    Raises:
        UserError: the processes that train together were started in a way that does not work.
    """
    folder = CHECKPOINTS / fingerprint(name, *key, accumulate, weights_ema)
    last = folder / "last.ckpt"
    if last.exists():
        log.info("%s  resumes from %s", name, last)
    module.label, module.run, module.progress = name, run, Progress()
    module.average = None if weights_ema is None else WeightsEMA(weights_ema)
    keep_memory()
    use_fast_kernels()
    with _quiet():
        trainer = _trainer(module, folder, epochs, seed, accumulate)
        trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if module.average:
        module.load_state_dict(module.average.average)
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)


def _trainer(module: Module, folder: Path, epochs: int, seed: int, accumulate: int) -> pl.Trainer:
    checkpoint = ModelCheckpoint(
        folder, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks: list[Callback] = [EpochSeed(seed), module.progress, checkpoint]
    plugins: list[Any] = [AtomicCheckpoint()]
    start = launch()
    if start.processes > 1:
        plugins.append(start.environment())
        if torch.cuda.is_available():
            synchronised(module)
    return pl.Trainer(
        accelerator="auto",
        devices=start.devices,
        num_nodes=start.nodes,
        strategy="ddp" if start.processes > 1 else "auto",
        plugins=plugins,
        use_distributed_sampler=False,  # Batches shares out
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        logger=False,
        precision=precision(),
        callbacks=callbacks + ([module.average] if module.average else []),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
    )


def find_compiler() -> None:
    """Make sure that ``torch.compile`` can work.

    Raises:
        UserError: there is no C++ compiler.
    """
    compilers = (os.environ.get("CXX", "g++"), "clang++", "c++")
    if not any(map(shutil.which, compilers)):
        raise UserError("compile: needs a C++ compiler, such as g++; install one, or set compile to false")


def compile_network(network: torch.nn.Module, dynamic: bool | None = None) -> None:
    """Run ``network`` through ``torch.compile`` from now on, whoever calls it.

    Its tensors keep their names and places; sums may differ in their last bits.

    Args:
        network: compiled when it is first called, and again for other sizes and for evaluation.
        dynamic: False compiles once for each size of batch; None takes any size after the second.

    Raises:
        UserError: there is no C++ compiler.
    """
    find_compiler()
    network.compile(dynamic=dynamic)


def precision() -> Any:
    """Lightning's name of the fastest arithmetic here: bfloat16 where the GPU has it and does not emulate."""
    return {None: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}[half_precision()]


def pictures(images: Pictures, rows: np.ndarray) -> torch.Tensor:
    """Rows of a store (N, H, W, 3) as a uint8 tensor (B, 3, H, W) on the host."""
    return torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)


def save_tensors(module: torch.nn.Module, path: Path) -> None:
    """Write a network's state as safetensors, atomically."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with atomic_write(path) as partial:
        save_file(tensors, partial)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on loaders and devices is for other programs."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim")
        yield

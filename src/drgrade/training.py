"""The training loop of all networks but the detector: Lightning, made resumable and reproducible.

An interrupted training resumes after its last finished epoch and ends with the weights of an
uninterrupted run, bit for bit on one CPU type: batches, augmentation and dropout are drawn from
(seed, epoch, sample), and the number of torch threads is fixed. Several processes share every batch
(:mod:`drgrade.distributed`) and take the same step as a single process.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from drgrade.background import read_ahead
from drgrade.callbacks import AtomicCheckpoint, EpochSeed, Progress, WeightsEMA
from drgrade.device import half_precision, use_fast_kernels
from drgrade.distributed import broadcast_buffers, launch, mean_over_processes, rank, synchronised, world
from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.images.store import Images
from drgrade.memory import keep_memory, peak_memory_gb, reset_peak_memory
from drgrade.seeding import numpy_rng

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
    """One process's part of every batch: parts are of equal size, and concatenated in order they are the
    batch. Rows of a smaller last batch that cannot be divided evenly are dropped.

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
    """Data loader of one epoch.

    A background thread prepares the next batches (reading, decoding, random numbers) while a step runs, so
    that the device need not wait. In distributed training each process gets its share of each batch.

    Args:
        batches: row numbers of each batch.
        prepare: converts these to the input of a step; Lightning moves its tensors to the device.
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
        """Prepare a batch, with a GPU in pinned memory, from which transfers are asynchronous."""
        batch = self.prepare(items)
        return apply_to_collection(batch, Tensor, Tensor.pin_memory) if torch.cuda.is_available() else batch


class Module(pl.LightningModule):
    """Base class of training modules: reports each epoch's metrics in the log and in MLflow."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[torch.Tensor] = []
        self.label = ""
        self.run: Any = None
        self.progress = Progress()
        self.average: WeightsEMA | None = None
        self.weight = 1.0

    def on_fit_start(self) -> None:
        """Measure the peak of memory from here on; the device is chosen by now."""
        reset_peak_memory()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Weight the batch by its share of the images of this optimiser step."""
        together = self.trainer.accumulate_grad_batches
        loader: Any = self.trainer.train_dataloader
        batches, first = loader.batches, batch_idx - batch_idx % together
        sizes = [len(batches[place]) for place in range(first, min(first + together, len(batches)))]
        self.weight = sizes[batch_idx - first] * together / sum(sizes)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Weight the loss: Lightning's division by ``accumulate`` assumes full steps of equal batches."""
        super().backward(loss * self.weight, *args, **kwargs)

    def validate(self) -> dict[str, float]:
        """Metrics of the finished epoch besides the training loss; empty unless overridden.

        Called in every process; each returns the metrics of the whole validation data.
        """
        return {}

    def end_epoch(self, loss: float) -> None:
        """Called after each epoch with its mean training loss, the same in every process."""

    def on_train_epoch_end(self) -> None:
        """Validate and report; with ``weights_ema`` the averaged weights are validated."""
        values = {"loss": float(mean_over_processes(torch.stack(self.losses).mean()))}
        speed = {"images_per_s": self.progress.rate()}  # reading the loss has waited for the device
        self.losses.clear()
        self.end_epoch(values["loss"])
        broadcast_buffers(self)
        with self.average.applied(self) if self.average else nullcontext():
            values |= self.validate()
        values |= {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], **speed}
        values["peak_memory_gb"] = peak_memory_gb()
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 0
        left = self.progress.left(epochs - epoch)
        if self.trainer.is_global_zero:
            log.info("%s  epoch %d/%d  %s  %s left", self.label, epoch, epochs, _shown(values), left)
            self.run.metrics(values, step=self.current_epoch)


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())


def fingerprint(*parts: Any) -> str:
    """Name of a checkpoint folder, 16 hexadecimal digits that change with any of ``parts``."""
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
    clip: float | None = None,
) -> None:
    """Train ``module`` for ``epochs``, resuming after its last finished epoch if there is a checkpoint.

    Args:
        module: defines its ``train_dataloader`` (called anew each epoch) and optimiser.
        name: name of the training in the log.
        epochs: passes over the data.
        seed: seed of all random numbers.
        key: all that identifies this training (params, digests of inputs); see :func:`fingerprint`.
        run: a :class:`drgrade.tracking.Run`.
        accumulate: batches whose gradients, weighted by batch size, are accumulated for one step; for losses
            that are means over the batch this equals one large batch, except for BatchNorm. An epoch has
            ceil(batches / accumulate) steps, which schedules must count. For contrastive losses see
            :func:`drgrade.gradient_cache.chunked_backward`.
        weights_ema: decay of an exponential moving average of the weights; the average is validated, and
            ``module`` holds it at the end. None: no averaging.
        clip: largest norm of the gradient of a step; None: not clipped.

    Raises:
        UserError: the processes of a distributed training were started incorrectly.
    """
    folder = CHECKPOINTS / fingerprint(name, *key, accumulate, weights_ema, clip)
    last = folder / "last.ckpt"
    if last.exists():
        log.info("%s  resumes from %s", name, last)
    module.label, module.run, module.progress = name, run, Progress()
    module.average = None if weights_ema is None else WeightsEMA(weights_ema)
    keep_memory()
    use_fast_kernels()
    with _quiet():
        trainer = _trainer(module, folder, epochs, seed, accumulate, clip)
        trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if module.average:
        module.load_state_dict(module.average.average)
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)


def _trainer(
    module: Module, folder: Path, epochs: int, seed: int, accumulate: int, clip: float | None
) -> pl.Trainer:
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
        use_distributed_sampler=False,  # Loader divides batches between processes
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        logger=False,
        precision=precision(),
        callbacks=callbacks + ([module.average] if module.average else []),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
    )


def find_compiler() -> None:
    """Check that there is a C++ compiler for ``torch.compile``.

    Raises:
        UserError: there is no C++ compiler.
    """
    compilers = (os.environ.get("CXX", "g++"), "clang++", "c++")
    if not any(map(shutil.which, compilers)):
        raise UserError("compile: needs a C++ compiler, such as g++; install one, or set compile to false")


def compile_network(network: torch.nn.Module, dynamic: bool | None = None) -> None:
    """Compile ``network`` in place with ``torch.compile``.

    The names of its tensors do not change; results may differ in their last bits.

    Args:
        network: compiled when it is first called, and again for other sizes and for evaluation.
        dynamic: False compiles for each batch size anew; None compiles for all sizes from the second on.

    Raises:
        UserError: there is no C++ compiler.
    """
    find_compiler()
    network.compile(dynamic=dynamic)


def precision() -> Any:
    """Lightning's name of the precision to train in: that of :func:`half_precision`, float32 on a CPU."""
    return {None: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}[half_precision()]


def pictures(images: Images, rows: np.ndarray) -> torch.Tensor:
    """Rows of a store (N, H, W, 3) as a uint8 tensor (B, 3, H, W) on the host."""
    return torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a network's state as safetensors, atomically."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_write(path) as partial:
        save_file(tensors, partial)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice on data loaders, devices and ``srun``, which does not apply here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim")
        yield

"""The training loop that every network but the detector shares: Lightning, made resumable and exact.

A training that is killed resumes at its last finished epoch and ends with the weights of the
undisturbed run, bit for bit on one CPU type: batches, augmentation and dropout are drawn from
(seed, epoch, sample), and torch's threads are a fixed number.
"""

import hashlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from drgrade.files import whole
from drgrade.images.store import Pictures
from drgrade.seeding import numpy_rng, seed_everything

log = logging.getLogger(__name__)

CHECKPOINTS = Path(".cache/drgrade/training")


class Batches(Dataset[Any]):
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

    def __getitem__(self, item: int) -> np.ndarray:
        return self.batches[item]


def loader(batches: Dataset[Any]) -> DataLoader[Any]:
    """Hand batches out one by one, as they are."""
    return DataLoader(batches, batch_size=None, shuffle=False, num_workers=0)


class EpochSeed(Callback):
    """Re-seed the global generators per epoch, so that a resumed epoch draws what it would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed for this epoch."""
        seed_everything(self.seed, "epoch", trainer.current_epoch)


class Module(pl.LightningModule):
    """A network in training: says what each epoch measured, in the log and in MLflow."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[torch.Tensor] = []
        self.label = ""
        self.run: Any = None

    def validate(self) -> dict[str, float]:
        """Metrics of the finished epoch beside the training loss; none unless overridden."""
        return {}

    def on_train_epoch_end(self) -> None:
        """Measure and report."""
        values = {"loss": float(torch.stack(self.losses).mean()), **self.validate()}
        self.losses.clear()
        values["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        log.info("%s  epoch %d/%d  %s", self.label, self.current_epoch + 1, self.trainer.max_epochs, shown)
        self.run.metrics(values, step=self.current_epoch)


def fingerprint(*parts: Any) -> str:
    """A folder name for checkpoints: it changes with anything that would make resuming wrong."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fit(module: Module, *, name: str, epochs: int, seed: int, key: Sequence[Any], run: Any) -> None:
    """Train ``module`` for ``epochs``, from its last finished epoch where there is one.

    Args:
        module: brings its own ``train_dataloader`` (asked anew each epoch) and optimiser.
        name: what the log calls this training.
        epochs: passes over the data.
        seed: of everything random.
        key: all that identifies this training (params, digests of inputs); see :func:`fingerprint`.
        run: a :class:`drgrade.tracking.Run`.
    """
    folder = CHECKPOINTS / fingerprint(name, *key)
    last = folder / "last.ckpt"
    if last.exists():
        log.info("%s  resumes from %s", name, last)
    module.label, module.run = name, run
    checkpoint = ModelCheckpoint(
        folder, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    with _quiet():
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=epochs,
            logger=False,
            precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
            callbacks=[EpochSeed(seed), checkpoint],
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
        )
        trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    shutil.rmtree(folder, ignore_errors=True)


def device() -> torch.device:
    """The accelerator, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pictures(images: Pictures, rows: np.ndarray) -> torch.Tensor:
    """Rows of a store (N, H, W, 3) as a uint8 tensor (B, 3, H, W) on the device."""
    batch = torch.from_numpy(np.ascontiguousarray(images[rows]))
    return batch.to(device(), non_blocking=True).permute(0, 3, 1, 2)


def save_tensors(module: torch.nn.Module, path: Path) -> None:
    """Write a network's state as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with whole(path) as partial:
        save_file(tensors, partial)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on loaders and devices is for other programs."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim")
        yield

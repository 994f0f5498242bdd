"""Lightning's callbacks and checkpoint files of :mod:`drgrade.training`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drgrade.files import atomic_write
from drgrade.seeding import seed_everything


class EpochSeed(Callback):
    """Re-seed the global generators per epoch, so that a resumed run draws the same random numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed for this epoch, differently in each process."""
        other = (trainer.global_rank,) if trainer.global_rank else ()
        seed_everything(self.seed, "epoch", trainer.current_epoch, *other)


class Progress(Callback):
    """Measures speed and remaining time of a training, from the epochs that this process has run."""

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
        """Count the images of all processes."""
        loader: Any = trainer.train_dataloader
        self.images += len(loader.batches[batch_idx]) * trainer.world_size

    def rate(self) -> float:
        """Images a second of this epoch so far."""
        return self.images / max(time.monotonic() - self.epoch_began, 1e-9)

    def left(self, epochs: int) -> timedelta:
        """Estimated time for ``epochs`` more at the mean pace so far; call once at the end of each epoch."""
        self.epochs += 1
        return timedelta(seconds=round((time.monotonic() - self.began) / self.epochs * epochs))


class WeightsEMA(Callback):
    """Exponential moving average of weights and BatchNorm statistics over the steps, kept in the checkpoint.

    Args:
        decay: weight of the old average in each update, 0-1.
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
        """Update the average once per optimiser step."""
        if trainer.global_step == self.step:
            return  # gradients are still being accumulated
        self.step = trainer.global_step
        own = pl_module.state_dict()
        moving = [key for key, value in own.items() if value.is_floating_point()]
        with torch.no_grad():
            self.update([self.average[key] for key in moving], [own[key] for key in moving], None)
            for key in own.keys() - set(moving):
                self.average[key].copy_(own[key])

    @contextmanager
    def applied(self, module: torch.nn.Module) -> Iterator[None]:
        """Context manager: within it ``module`` has the averages in place of its weights."""
        own = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.load_state_dict(self.average)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: averages and step."""
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore averages and step from the checkpoint."""
        self.average, self.step = state_dict["average"], state_dict["step"]


class AtomicCheckpoint(TorchCheckpointIO):
    """Checkpoint files that are replaced atomically.

    Lightning writes to the system's temporary folder first: from another disk the file is copied over the
    last good one, and an interruption of the copy leaves neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside ``path``, then rename."""
        with atomic_write(Path(path)) as partial:
            torch.save(checkpoint, partial)

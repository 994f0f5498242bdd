"""The stage ``segmentation``: train the network of one part, on random tiles of photographs with masks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drgrade.distributed import sum_over_processes, world
from drgrade.encoders import start_record
from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.grading.optimise import optimizer, schedule
from drgrade.inference import batch_size, run_batches
from drgrade.lesions.mask_store import BITS
from drgrade.lesions.tiles import Tiling
from drgrade.params import Segmentation
from drgrade.params.training import Schedule
from drgrade.rank import rank
from drgrade.resume import training_key
from drgrade.schema import INDEX, read_table
from drgrade.seeding import seed_everything
from drgrade.segmentation.losses import UNKNOWN, criterion, to_targets
from drgrade.segmentation.network import SegmentationNetwork, new_network
from drgrade.segmentation.parts import parts
from drgrade.segmentation.regions import Bytes, Region, mask_files, read_regions
from drgrade.segmentation.windows import Tiles, Windows
from drgrade.tracking import track
from drgrade.training import Batches, Loader, Module, fit

log = logging.getLogger(__name__)

LIMIT, BINS = 16.0, 4096
"""Validation logits are counted in this many bins from minus to plus the limit, for the AUPR."""


def train_segmentation(
    dataset: str, part: str, index: Path, crops: Path, params: Segmentation, out: Path
) -> None:
    """Train the network of one part.

    Writes ``out/model/`` (:meth:`.SegmentationNetwork.save`) and ``out/training.json``: numbers of
    photographs, start weights, and loss and validation AUPR of the epochs. The AUPR is
    measured after every epoch if ``params.select`` is ``best``, else after the last one.

    Args:
        dataset: name of the dataset with lesion masks.
        part: a name in :func:`drgrade.segmentation.parts.part_names`.
        index: ``index.parquet``.
        crops: ``crops.parquet``; only the crop box is used.
        params: the block ``segmentation``.
        out: output folder.

    Raises:
        UserError: no such part, too few photographs, or the start weights are missing or do not fit.
    """
    divided = parts(read_table(index, INDEX), params)
    if part not in divided:
        raise UserError(f"--part: {part!r} is none of {', '.join(divided)}; choose one of them")
    names = {split: list(divided[part].index[divided[part] == split]) for split in ("train", "val")}
    start = start_record(params.encoder, params.start, params.seed)
    about = {"dataset": dataset, "part": part, "start_weights": start}
    with track("segmentation", part, params.model_dump() | about) as run:
        run.dataset("crops", crops)
        photographs = {
            split: read_regions(dataset, index, crops, own, params) for split, own in names.items()
        }
        seed_everything(params.seed, "start")
        network = new_network(params)
        module = Training(network, params, photographs["train"], photographs["val"])
        key = key_of(index, crops, params, names, about)
        label = f"segmentation {part}"
        fit(module, name=label, epochs=params.epochs, seed=params.seed, key=(key,), run=run)
        module.finish()
        if rank() == 0:  # the other processes have the same network
            network.save(out / "model")
            counts = {split: len(read) for split, read in photographs.items()}
            write_json(
                about | {"photographs": counts, "seed": params.seed, "history": module.history},
                out / "training.json",
            )
            run.artifact(out / "model", "model")
            run.artifact(out / "training.json")


def key_of(
    index: Path, crops: Path, params: Segmentation, names: Mapping[str, list[str]], about: dict[str, Any]
) -> str:
    """The key that identifies one training, see :func:`drgrade.resume.training_key`.

    Args:
        index: ``index.parquet``, which has digests of the photographs.
        crops: ``crops.parquet``.
        params: the block ``segmentation``.
        names: image_ids by split.
        about: dataset, part and start weights.
    """
    masks = mask_files(about["dataset"], [*names["train"], *names["val"]], params).values()
    return training_key(
        "segmentation",
        None,
        params.model_dump(),
        photographs={split: pd.DataFrame({"image_id": own}) for split, own in names.items()},
        files=[index, crops, *chain.from_iterable(files.values() for files in masks)],
        facts=about,
    )


class Training(Module):
    """Training module: tiles are cut in the background while a step runs.

    Args:
        network: trained in place.
        params: the block ``segmentation``.
        train: training photographs.
        val: validation photographs.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        params: Segmentation,
        train: Sequence[Region],
        val: Sequence[Region],
    ) -> None:
        super().__init__()
        self.network, self.params = network, params
        self.windows = Windows(train, params)
        for kind in network.kinds:
            if not any(region.annotated & BITS[kind] for region in train):
                log.warning("%s: annotated in no training photograph, so its predictions mean nothing", kind)
        self.val = [tile for region in val for tile in plain_tiles(region, params.tile)]
        self.criterion = criterion(params.loss)
        self.history: list[dict[str, Any]] = []
        self.best_aupr, self.best_weights = -np.inf, dict[str, Tensor]()

    def train_dataloader(self) -> Loader:
        """Batches of this epoch."""
        batches = Batches(len(self.windows), self.params.batch_size, self.params.seed, self.current_epoch)
        return Loader(batches, partial(self.windows.tiles, epoch=self.current_epoch))

    def training_step(self, batch: Tiles, _: int) -> Tensor:
        """Training loss of a batch."""
        targets = to_targets(batch.masks, batch.annotated, self.network.kinds)
        loss = self.criterion(self.network(batch.images).float(), targets)
        self.losses.append(loss.detach())
        return loss

    def end_epoch(self, loss: float) -> None:
        """Record the loss."""
        self.history.append({"loss": loss})

    def validate(self) -> dict[str, float]:
        """AUPR of each kind that the validation photographs show, and their mean; keeps the best weights."""
        if self.params.select == "last" and self.current_epoch + 1 < self.params.epochs:
            return {}
        counts = count_logits(self.network, self.val, batch_size(self.params.tile, self.params.batch_size))
        found = {
            kind: aupr(own)
            for kind, own in zip(self.network.kinds, counts.numpy(), strict=True)
            if own[1].any()
        }
        self.history[-1]["val_aupr"] = found
        if not found:
            return {}
        mean = float(np.mean(list(found.values())))
        if self.params.select == "best" and mean > self.best_aupr:
            self.best_aupr = mean
            self.best_weights = {key: value.clone() for key, value in self.network.state_dict().items()}
        return {"val_aupr": mean} | {f"val_aupr_{kind}": value for kind, value in found.items()}

    def configure_optimizers(self) -> Any:
        """AdamW in a one-cycle schedule."""
        params = self.params
        tuned = optimizer(self.network, name="adamw", lr=params.lr, weight_decay=params.weight_decay)
        steps = len(Batches(len(self.windows), params.batch_size, params.seed, 0))
        timed = schedule(tuned, Schedule(), steps, params.epochs)
        return [tuned], [{"scheduler": timed, "interval": "step"}]

    def finish(self) -> None:
        """Take the weights of the best epoch if ``select`` says so."""
        if self.best_weights:
            self.network.load_state_dict(self.best_weights)
        elif self.params.select == "best":
            log.warning("no validation photograph shows a lesion: the weights of the last epoch are kept")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the history and the best epoch so far, for resuming."""
        checkpoint["history"] = self.history
        checkpoint["best"] = float(self.best_aupr), self.best_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the best epoch so far."""
        self.history = checkpoint["history"]
        self.best_aupr, self.best_weights = checkpoint["best"]


class PlainTile(NamedTuple):
    """A tile of a validation photograph: pixels (T, T, 3), masks (T, T) and bits of the annotated kinds."""

    pixels: Bytes
    masks: Bytes
    annotated: int


def plain_tiles(region: Region, side: int) -> Iterator[PlainTile]:
    """Yield tiles that cover a photograph, evenly spaced, without those outside the field of view.

    Neighbours overlap only where the region's side is no multiple of the tile's.
    """
    tiling = Tiling(side, 0.0, 1.0)
    height, width = region.masks.shape
    shown = tiling.cut(region.pixels, (0, 0, width, height))
    marked = tiling.cut(region.masks[..., None], (0, 0, width, height), labels=True)
    for tile, own in zip(shown, marked, strict=True):
        if not tile.outside:
            yield PlainTile(tile.pixels, own.pixels[..., 0], region.annotated)


def count_logits(network: SegmentationNetwork, tiles: Sequence[PlainTile], size: int) -> Tensor:
    """Numbers of pixels without (0) and with (1) a lesion by logit: int64 (K, 2, BINS) on the CPU.

    Pixels that were not annotated do not count. In distributed training each process counts its share of the
    tiles and all get the sums, so all must call this.

    Args:
        network: on its device; its mode is left as it is.
        tiles: of the validation photographs.
        size: tiles per forward pass.
    """
    device = next(network.parameters()).device
    own = tiles[rank() :: world()]
    kinds = torch.arange(len(network.kinds), device=device)[:, None, None]

    def forward(part: Sequence[PlainTile]) -> Tensor:
        pixels = torch.from_numpy(np.stack([tile.pixels for tile in part])).to(device).permute(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([tile.masks for tile in part])).to(device)
        annotated = torch.tensor([tile.annotated for tile in part], dtype=torch.uint8, device=device)
        targets = to_targets(masks, annotated, network.kinds)
        places = ((network(pixels).float() + LIMIT) * (BINS / (2 * LIMIT))).long().clamp(0, BINS - 1)
        cells = (kinds * 2 + targets.long()) * BINS + places
        return torch.bincount(cells[targets != UNKNOWN], minlength=len(network.kinds) * 2 * BINS)

    training = network.training
    network.eval()
    counts = torch.zeros(len(network.kinds) * 2 * BINS, dtype=torch.int64, device=device)
    for found in run_batches(forward, [own[start : start + size] for start in range(0, len(own), size)]):
        counts += found
    network.train(training)
    return sum_over_processes(counts).reshape(len(network.kinds), 2, BINS).cpu()


def aupr(counts: np.ndarray) -> float:
    """Average precision sum_n (R_n - R_(n-1)) P_n over the thresholds between bins, in 0-1.

    Args:
        counts: pixels without and with a lesion by rising logit, integers (2, BINS); some have one.
    """
    above = counts[:, ::-1].cumsum(axis=1)
    precision = above[1] / above.sum(axis=0).clip(min=1)
    return float((counts[1, ::-1] * precision).sum() / counts[1].sum())

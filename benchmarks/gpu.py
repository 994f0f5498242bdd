"""Training and inference on a GPU: is it right, how fast is it, and does the device wait for data.

    uv run python benchmarks/gpu.py [--only NAME ...] [--toy]

At most 8 minutes on one card. Everything runs through the pipeline's own code, on crops of noise with a grade
written into them. With --toy, tiny networks at tiny sizes, which a CPU does in a minute: a test runs that.

For every training it checks that the loss goes down, that the loss of a batch in bfloat16 is that in float32
within 2 % (10 % for contrastive losses, whose cosines are divided by 0.07), and that a training which was
stopped after an epoch and taken up again ends as one that was not (bit for bit on a CPU; on a GPU, whose sums
have no fixed order, its last loss within 5 %).

Then it measures images/s (pairs/s for contrastive learning), the median of the epochs after the first:

- ours: the stage's training loop, batches read, augmented and learnt from;
- ready: the same loop, given one and the same batch that is on the device already; what ours is slower by is
  the share of time that it waits for data (under 5 %);
- limit: the bare network, forward and backward on tensors in the device's memory, and the optimiser.

The search for lesions and the training of the detector need MMDetection; a part that cannot be imported is a
row with the reason. For comparison: timm's published table of training on an RTX 3090 (mixed precision, 224
px) has 2,135 images/s for EfficientNet-Lite0 and 1,218 for ResNet-50. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric.utilities import move_data_to_device

from drgrade import training
from drgrade.device import autocast, device
from drgrade.grading import finetune, regression
from drgrade.grading.base import Job, Photographs, Start
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import Crop, LesionContrastive, LocalToGlobal
from drgrade.pretrain import contrastive, lesion_contrastive, local_to_global
from drgrade.pretrain.base import Material
from drgrade.seeding import seed_everything
from drgrade.tracking import NullRun
from drgrade.training import Module

WAITING = 0.05
"""Largest share of time that a training may wait for data."""
EPOCHS = 4
WARM_UP, REPEATS = 3, 7


class Size(NamedTuple):
    """How large everything is."""

    crop: int  # side of a crop in the store
    crops: int
    steps: int  # of an epoch
    lite: str  # encoders
    resnet: str
    vit: str
    fine_tune: dict[int, int]  # batch by side of the image
    patch: int
    pairs: int  # of a contrastive batch
    chunk: int
    distil: dict[str, Any]  # of local-to-global


FULL = Size(
    512, 256, 12, "tf_efficientnet_lite0", "resnet50", "vit_small_patch16_224", {224: 256, 512: 64}, 128, 768,
    256, {"global_size": 224, "local_size": 96, "local_crops": 8, "batch_size": 64},
)  # fmt: skip
TOY = Size(
    64, 16, 2, "test_efficientnet", "test_resnet", "test_vit", {32: 8}, 16, 16, 8,
    {"global_size": 32, "local_size": 16, "local_crops": 2, "batch_size": 8, "out_dim": 64, "lr": 0.05},
)  # fmt: skip


class Case(NamedTuple):
    """A training: its module, one step of its bare network, and how many images that goes over."""

    make: Callable[[], Module]
    bare: Callable[[Module], Callable[[], None]]
    images: int
    tolerance: float


class Kept(NullRun):
    """Keeps what each epoch says; stops the training after one if told to."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self.last = last

    def metrics(self, values: Any, step: int = 0) -> None:
        """The figures of an epoch."""
        self.rows.append(dict(values))
        if self.last is not None and step > self.last:
            raise InterruptedError


class Ready:
    """An epoch of one and the same batch, which is on the device already."""

    def __init__(self, batches: Any, batch: Any) -> None:
        self.batches, self.batch = batches, batch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return (self.batch for _ in self.batches)


def store_of(size: Size, folder: Path) -> CropStore:
    """Crops of noise, brighter the higher the grade (row modulo 5)."""
    rng = np.random.default_rng(0)
    low = np.arange(size.crops)[:, None, None, None] % 5 * 35
    noise = rng.integers(0, 80, (size.crops, size.crop // 8, size.crop // 8, 3))
    pictures = (noise + low).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_store(pictures, folder / "store.json", "raw", 95)
    return CropStore(folder / "store.json")


def timed(step: Callable[[], None], images: int) -> float:
    """Images a second of a step, the median of several."""
    took = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return images / statistics.median(took[WARM_UP:])


def stepping(
    network: torch.nn.Module, passes: Callable[[], list[Callable[[], torch.Tensor]]]
) -> Callable[[], None]:
    """A step of AdamW on the summed gradients of some forward passes."""
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimiser.zero_grad()
        for forward in passes():
            with autocast():
                output = forward()
            output.float().square().mean().backward()
        optimiser.step()

    return step


def pixels(count: int, side: int) -> torch.Tensor:
    """Images in the device's memory."""
    batch = torch.rand(count, 3, side, side, device=device())
    return batch.contiguous(memory_format=torch.channels_last)


def fine_tuning(size: Size, store: CropStore, encoder: str, side: int) -> Case:
    """Grading from random weights."""
    batch = size.fine_tune[side]
    rows = np.arange(batch * size.steps) % size.crops
    params = finetune.Params(
        encoder=encoder,
        start="random",
        input_size=side,
        batch_size=batch,
        epochs=EPOCHS,
        select="last",
        lr=3e-4,
    )
    part = Photographs(store, pd.DataFrame({"grade": rows % 5, "row": rows}))
    none = Photographs(store, part.table.iloc[:0])
    grader = finetune.Finetune(params, Crop())

    def make() -> Module:
        seed_everything(0, "head")
        job = Job(part, none, Start("random"), 0, "", "", None)
        return regression.FineTune(grader.new_network("random"), params, grader.preprocess, job)

    def bare(module: Module) -> Callable[[], None]:
        network: Any = module.network.to(device()).train()
        inputs = pixels(batch, side)
        return stepping(network, lambda: [lambda: network(inputs)])

    return Case(make, bare, batch, 0.02)


def lesion_pairs(size: Size, store: CropStore, chunk: int | None) -> Case:
    """Contrastive learning on boxes of lesions."""
    rows = np.arange(size.pairs * size.steps) % size.crops
    corner = size.crop // 2 - size.patch // 8
    box = np.array([[corner, corner, corner + size.patch // 4, corner + size.patch // 4]], float)
    material = Material(store, rows, [box] * len(rows), size.patch)
    params = LesionContrastive(
        encoder=size.resnet, start="random", batch_size=size.pairs, chunk=chunk, epochs=EPOCHS, lr=0.02
    ).model_dump()

    def make() -> Module:
        return lesion_contrastive.LesionPairs(contrastive.projector(params), material, params)

    def bare(module: Module) -> Callable[[], None]:
        network: Any = module.network.to(device()).train()
        inputs = pixels(2 * size.pairs, size.patch).split(chunk or 2 * size.pairs)
        return stepping(network, lambda: [lambda part=part: network(part)[1] for part in inputs])

    return Case(make, bare, size.pairs, 0.1)


def distillation(size: Size, store: CropStore) -> Case:
    """Local-to-global, student and teacher."""
    params = LocalToGlobal(encoder=size.vit, epochs=EPOCHS, warmup_epochs=1, **size.distil)
    rows = np.arange(params.batch_size * size.steps) % size.crops
    material = Material(store, rows, [np.zeros((0, 4))] * len(rows), size.patch)

    def make() -> Module:
        seed_everything(0, "head")
        student, teacher = (
            local_to_global.Network(local_to_global.vision_transformer(params, "random", 0.0), params)
            for _ in range(2)
        )
        return local_to_global.SelfDistillation(student, teacher, material, params)

    def bare(module: Module) -> Callable[[], None]:
        student, teacher = (network.to(device()).train() for network in (module.student, module.teacher))
        crops = [pixels(params.batch_size, params.global_size) for _ in range(2)]
        crops += [pixels(params.batch_size, params.local_size) for _ in range(params.local_crops)]

        def forward() -> torch.Tensor:
            with torch.no_grad():
                teacher(crops[:2])
            return student(crops)  # type: ignore[no-any-return]

        return stepping(student, lambda: [forward])

    return Case(make, bare, params.batch_size, 0.02)


def fit(module: Module, run: Kept, key: str) -> None:
    training.fit(module, name="benchmark", epochs=EPOCHS, seed=0, key=[key], run=run)


def first_batch(module: Module) -> Any:
    return move_data_to_device(next(iter(module.train_dataloader())), device())  # type: ignore[no-untyped-call]


def loss_of(case: Case, dtype: torch.dtype | None) -> float:
    """Of the first batch, with the start weights."""
    module = case.make().to(device())
    batch = first_batch(module)
    with torch.autocast(device().type, dtype, enabled=dtype is not None):
        loss = module.training_step(batch, 1)
    return float(loss.detach())


def checks(case: Case, plain: Case) -> dict[str, bool]:
    """What must hold of a training; ``plain`` is the same in steps that need no trainer."""
    whole, run = case.make(), Kept()
    fit(whole, run, "whole")
    losses = [row["loss"] for row in run.rows]
    full, half = (loss_of(plain, dtype) for dtype in (None, torch.bfloat16))
    stopped, again = Kept(last=0), Kept()
    with contextlib.suppress(InterruptedError):
        fit(case.make(), stopped, "stopped")
    resumed = case.make()
    fit(resumed, again, "stopped")
    return {
        "loss goes down": losses[-1] < losses[0],
        "bfloat16 is float32": abs(half - full) <= case.tolerance * abs(full),
        "resumes": len(again.rows) < EPOCHS and _alike(whole, resumed, losses[-1], again.rows[-1]["loss"]),
    }


def _alike(one: Module, other: Module, first: float, second: float) -> bool:
    if torch.cuda.is_available():
        return abs(first - second) <= 0.05 * abs(first)
    states = one.state_dict(), other.state_dict()
    return all(bool(torch.equal(value, states[1][key])) for key, value in states[0].items())


def speed(case: Case, ready: bool) -> float:
    """Images a second of the training loop."""
    module, run = case.make(), Kept()
    if ready:
        module.to(device())
        loader: Any = module.train_dataloader()
        batch = first_batch(module)
        module.train_dataloader = lambda: Ready(loader.batches, batch)  # type: ignore[method-assign]
    fit(module, run, f"speed {ready}")
    return statistics.median(row["images_per_s"] for row in run.rows[1:])


def measured(case: Case, plain: Case) -> dict[str, Any]:
    """Checks and figures of a training."""
    found: dict[str, Any] = {"checks": checks(case, plain)}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found["ours"] = speed(case, ready=False)
    if torch.cuda.is_available():
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    found["ready"] = speed(case, ready=True)
    found["waiting"] = round(max(0.0, 1 - found["ours"] / found["ready"]), 3)
    found["limit"] = timed(case.bare(case.make()), case.images)
    return found


def detector(toy: bool, folder: Path) -> dict[str, Any]:
    """Images/s of the detector's training, by the time from epoch to epoch, against its bare step."""
    import cv2
    from mmdet.registry import MODELS  # noqa: F401  (is MMDetection here?)

    from drgrade.lesions import detector as stage
    from drgrade.lesions.coco import Coco, rectangles
    from drgrade.lesions.tiles import Tile
    from drgrade.params import Detector

    side, count, batch = (64, 8, 2) if toy else (384, 128, 16)
    (folder / "boxes/images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        coco = Coco()
        for number in range(count):
            tile = rng.integers(60, 120, (side, side, 3)).astype(np.uint8)
            tile[20:44, 8:32] = 250
            encoded = cv2.imencode(".png", tile)[1].tobytes()
            name = f"{split}{number}.png"
            (folder / "boxes/images" / name).write_bytes(encoded)
            found = {"EX": rectangles(np.array([[8, 20, 32, 44]], float))}
            coco.add(name, encoded, Tile(tile, (0, 0), (1.0, 1.0), (0, 0)), found)
        coco.write(folder / f"boxes/{split}.json")
    params = Detector(
        config="rtmdet-tiny_tiles", start=None, epochs=4 * EPOCHS, batch_size=batch, background_tiles=1.0
    )
    times: list[float] = []
    losses: list[float] = []

    class Clock(NullRun):
        def metrics(self, values: Any, step: int = 0) -> None:
            if "train_loss" in values:
                times.append(time.perf_counter())
                losses.append(values["train_loss"])

    stage.train_detector(folder / "boxes", params, folder / "detector", Clock())
    return {
        # that of random weights is small: at first no point of the grid is taken for a lesion
        "checks": {"loss comes down from its peak": losses[-1] < max(losses) / 2},
        "ours": float(count / statistics.median(np.diff(times))),
        "limit": timed(_detector_step(folder, batch, side), batch),
    }


def _detector_step(folder: Path, batch: int, side: int) -> Callable[[], None]:
    """Backbone, neck and head of the trained detector on images in memory, without matching and losses."""
    from drgrade.device import half_precision
    from drgrade.lesions.amp import half_features
    from drgrade.lesions.detector import load_detector

    model: Any = load_detector(folder / "detector")[0].to(device()).train()
    model.to(memory_format=torch.channels_last)
    if (half := half_precision()) is not None:
        half_features(model, half)
    inputs = pixels(batch, side)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimiser.zero_grad()
        parts = model.bbox_head(model.extract_feat(inputs))
        torch.stack([one.square().mean() for level in parts for one in level]).sum().backward()
        optimiser.step()

    return step


def search(toy: bool, folder: Path) -> dict[str, Any]:
    """Megapixels/s of a search of synthetic photographs, and the share of it outside the detector."""
    from detect import CUT, PARAMS, outside, photographs, tiles_of, untrained  # benchmarks/detect.py

    from drgrade.lesions.tile_detector import TileDetector

    paths, _ = photographs(1 if toy else 10, folder / "demo")
    found = untrained(folder / "untrained")
    tiles = tiles_of(paths, 10_000)
    megapixels = len(tiles) * (CUT.tile or 0) ** 2 / 1e6
    seconds, waiting = outside(found, paths, folder)
    find = TileDetector(found, PARAMS.min_score)
    ready = [find.prepare(tile) for tile in tiles[: PARAMS.batch_size]]
    limit = timed(lambda: find.detect(ready) and None, len(ready)) * (CUT.tile or 0) ** 2 / 1e6
    return {"checks": {}, "ours": megapixels / seconds, "waiting": round(waiting, 3), "limit": limit}


def parts(size: Size, store: CropStore, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""
    chunked, plain = (lesion_pairs(size, store, chunk) for chunk in (size.chunk, None))
    distil = distillation(size, store)
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for side in size.fine_tune:
        for encoder in (size.lite, size.resnet):
            case = fine_tuning(size, store, encoder, side)
            found[f"finetune {encoder} {side}"] = lambda case=case: measured(case, case)
    found[f"lesion_contrastive {size.resnet} {size.patch}"] = lambda: measured(chunked, plain)
    found[f"local_to_global {size.vit}"] = lambda: measured(distil, distil)
    found["detector"] = lambda: detector(size is TOY, folder)
    found["search"] = lambda: search(size is TOY, folder)
    return found


def tried(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, or why it did not run."""
    try:
        return part()
    except ImportError as error:
        return {"left out": str(error)}


def row_of(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    if "left out" in found:
        return f"{name:42s}left out: {found['left out']}"
    ready, peak = found.get("ready"), found.get("peak_gb")
    failed = ", ".join(check for check, holds in found["checks"].items() if not holds)
    return (
        f"{name:42s}{found['ours']:9.1f}{ready or 0:9.1f}{found['limit']:9.1f}"
        f"{found['ours'] / found['limit']:8.2f}{found.get('waiting', float('nan')):9.1%}{peak or 0:8.2f}  "
        f"{failed or 'ok'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, also for a CPU")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so")
    arguments = parser.parse_args()
    if not (arguments.toy or torch.cuda.is_available()):
        parser.error("no GPU here; --toy runs on a CPU")
    warnings.simplefilter("ignore")
    size = TOY if arguments.toy else FULL
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # checkpoints of the trainings
        store = store_of(size, Path(name))
        print(f"{'':42s}{'ours':>9s}{'ready':>9s}{'limit':>9s}{'ratio':>8s}{'waiting':>9s}{'GB':>8s}  checks")
        for part, run in parts(size, store, Path(name)).items():
            if part.startswith(tuple(arguments.only)):
                rows[part] = tried(run)
                print(row_of(part, rows[part]), flush=True)
        os.chdir("/")
    ran = [row for row in rows.values() if "left out" not in row]
    right = all(all(row["checks"].values()) for row in ran)
    fed = all(row.get("waiting", 0) < WAITING for row in ran)
    shown = rows.get(f"finetune {size.resnet} 224") or ran[0]
    result = {
        "name": "gpu_training",
        "value": round(shown["ours"], 1),
        "unit": "images/s",
        "baseline": round(shown["limit"], 1),
        "ratio": round(shown["ours"] / shown["limit"], 3),
        "target": WAITING,
        "holds": right and (fed or arguments.toy),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "parts": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

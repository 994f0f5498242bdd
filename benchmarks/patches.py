"""Pairs of lesion views: pairs/s on one core, ours against the published loader, in one run.

    uv run python benchmarks/patches.py [--photographs 12] [--pairs 64] [--repeats 9]

Crops of 512 px and views of 128 px, all augmentations of the paper, normalised, in batches. The published
loader is written from its specification (Huang et al., MICCAI 2021, sections 7.1 and 7.2): for each pair it
decodes a JPEG file (quality 100, 4:4:4, as its crops are stored) with Pillow, and for each view cuts the
window and augments it with torchvision's transforms on Pillow's images, one after the other. Ours reads a
raw store; a JPEG store is printed beside it. Both are bound to one core, take turns with the same boxes, and
have all files in the page cache; the first turn is not timed. Times are of the CPU, nothing waits for a disk,
and neighbours on a busy machine then disturb least. Crops are of IDRiD's photographs
(DRGRADE_IDRID_ROOT) or, without them, of synthetic eyes. The limit is what memory allows: the windows copied,
and the normalised batch written once. With a GPU, the share of a training (ResNet-50, 768 pairs, bf16) that
is spent waiting for views, by comparison with training on views that are there. The last line is one JSON
object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from loader import crops  # benchmarks/loader.py, which lies beside this file
from PIL import Image
from torchvision import transforms

from drgrade.device import device
from drgrade.images.augment import normalise
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import CONTRASTIVE
from drgrade.pretrain import views
from drgrade.seeding import torch_threads

SIZE, PATCH, FASTER, WAITING = 512, 128, 10.0, 0.05
MEAN, STD = [0.4, 0.28, 0.19], [0.28, 0.2, 0.16]
AUGMENT = CONTRASTIVE.model_dump() | {"ratio": [0.8, 1.2]}

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows (n,), boxes (n, 4) and seeds (n, 2)."""


class Published:
    """The published dataset and its loader's collation: two views for each box."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.augment = transforms.Compose([
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
            transforms.RandomResizedCrop(PATCH, (0.8, 1.2), (0.8, 1.2)),
            transforms.RandomAffine((-180, 180), (0.2, 0.2)),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def pair(self, row: int, box: np.ndarray) -> list[torch.Tensor]:
        """Both views of one photograph."""
        with Image.open(self.paths[row]) as file:
            picture = file.convert("RGB")
        return [self.augment(self.window(picture, box)) for _ in range(2)]

    def window(self, picture: Image.Image, box: np.ndarray) -> Image.Image:
        """A window that holds the box, black beyond the crop."""
        corner = []
        for low, high in ((box[0], box[2]), (box[1], box[3])):
            room = min(low, PATCH - (high - low))
            corner.append(round(low - int(torch.rand(1).item() * room)))
        left, top = corner
        return picture.crop((left, top, left + PATCH, top + PATCH))

    def batch(self, batch: Batch) -> torch.Tensor:
        """All first views, then all second ones (2n, 3, P, P)."""
        pairs = [self.pair(int(row), box) for row, box in zip(batch[0], batch[1], strict=True)]
        return torch.cat([torch.stack(view) for view in zip(*pairs, strict=True)])


def ours(store: CropStore, batch: Batch) -> torch.Tensor:
    pairs = views.pair_views(store, batch[0], batch[1], PATCH, AUGMENT, batch[2])
    return normalise(views.made(move_data_to_device(pairs, device())), MEAN, STD)


def boxes(rng: np.random.Generator, pairs: int, pictures: int) -> Batch:
    """Boxes of 6 to 40 px, further than 5 px from the edge, whatever they hold."""
    sides = rng.integers(6, 41, (pairs, 2))
    corners = rng.integers(6, SIZE - 5 - sides)
    places = np.hstack([corners, corners + sides]).astype(float)
    return rng.integers(0, pictures, pairs), places, rng.integers(0, 2**63, (pairs, 2))


def decoded(paths: list[Path], batch: Batch) -> None:
    """The part of the published loader that ours does not have."""
    for row in batch[0]:
        with Image.open(paths[row]) as file:
            file.convert("RGB")


def moved(pictures: np.ndarray, result: torch.Tensor, batch: Batch) -> None:
    """Copy the windows' bytes out of the crops and the normalised views into new memory."""
    windows = np.empty((len(result), PATCH, PATCH, 3), np.uint8)
    for place, row in enumerate(np.tile(batch[0], 2)):
        x, y = batch[1][place % len(batch[0]), :2].astype(int) * (SIZE - PATCH) // SIZE
        windows[place] = pictures[row, y : y + PATCH, x : x + PATCH]
    result.clone()


def timed(ways: dict[str, Callable[[Batch], Any]], batches: list[Batch]) -> dict[str, float]:
    """Median microseconds of CPU a pair of each way; they take turns, and the first batch is not counted."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for batch in batches:
        for name, way in ways.items():
            start = time.process_time()
            way(batch)
            took[name].append(1e6 * (time.process_time() - start) / len(batch[0]))
    return {name: statistics.median(times[1:]) for name, times in took.items()}


def waiting(store: CropStore, batches: list[Batch]) -> float:
    """Share of a training that is spent waiting for views: against a training on the same views again."""
    import timm
    from lightly.loss import NTXentLoss

    network: torch.nn.Module = timm.create_model("resnet50", num_classes=128).to(device())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser, criterion = torch.optim.SGD(network.parameters(), 0.02, 0.9), NTXentLoss(0.07)

    def train(make: Callable[[Batch], torch.Tensor]) -> float:
        start = time.perf_counter()
        for batch in batches:
            inputs = make(batch).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device().type, torch.bfloat16):
                first, second = network(inputs).float().chunk(2)
            loss = criterion(first, second)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        loss.item()  # the GPU works on after its orders are given
        return time.perf_counter() - start

    same = ours(store, batches[0])
    turns = [(train(lambda batch: ours(store, batch)), train(lambda _: same)) for _ in range(4)]
    fresh, again = (statistics.median(times) for times in zip(*turns[1:], strict=True))
    return 1 - again / fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    cores = os.sched_getaffinity(0)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        pictures, what = crops(arguments.photographs, folder / "demo")
        paths = [folder / f"{row}.jpg" for row in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            Image.fromarray(picture).save(path, quality=100, subsampling=0)
        for format in ("raw", "jpeg"):
            write_store(pictures, folder / f"{format}.json", format, 95)
        raw, jpeg = (CropStore(folder / f"{format}.json") for format in ("raw", "jpeg"))
        batches = [boxes(rng, arguments.pairs, len(pictures)) for _ in range(arguments.repeats + 1)]
        os.sched_setaffinity(0, {min(cores)})
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        result = torch.zeros(2 * arguments.pairs, 3, PATCH, PATCH)
        with mock.patch.object(views, "device", return_value=torch.device("cpu")):
            times = timed(
                {
                    "published loader": Published(paths).batch,
                    "of that, decoding": lambda batch: decoded(paths, batch),
                    "ours, raw store": lambda batch: ours(raw, batch),
                    "ours, JPEG store": lambda batch: ours(jpeg, batch),
                    "limit": lambda batch: moved(pictures, result, batch),
                },
                batches,
            )
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(torch_threads())
        share = None
        if torch.cuda.is_available():
            share = waiting(raw, [boxes(rng, 768, len(pictures)) for _ in range(arguments.repeats + 1)])
    print(f"{len(pictures)} crops of {SIZE} px ({what}), batches of {arguments.pairs} pairs, one core")
    for way, each in times.items():
        print(f"{way:20s}{each:9.1f} us a pair{1e6 / each:9.0f} pairs/s")
    print(
        f"share of a step that waits for views: {'not measured, no GPU' if share is None else f'{share:.1%}'}"
    )
    print(json.dumps(summary(times, share, what)))


def summary(times: dict[str, float], share: float | None, what: str) -> dict[str, Any]:
    published, own = times["published loader"], times["ours, raw store"]
    return {
        "name": "patches",
        "value": round(1e6 / own),
        "unit": f"pairs/s, two augmented views of {PATCH} px from crops of {SIZE} px, one core",
        "baseline": round(1e6 / published),
        "ratio": round(published / own, 1),
        "target": FASTER,
        "holds": published / own >= FASTER and (share is None or share < WAITING),
        "ratio_jpeg_store": round(published / times["ours, JPEG store"], 1),
        "ratio_without_decoding": round((published - times["of that, decoding"]) / own, 1),
        "limit_pairs_per_s": round(1e6 / times["limit"]),
        "bytes_a_pair": 2 * PATCH**2 * 3 * (1 + 4),
        "gpu_share_waiting": share and round(share, 3),
        "photographs": what,
    }


if __name__ == "__main__":
    main()

"""Search photographs for lesions with a trained detector: ``drgrade lesions``."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from drgrade.lesions.coco import photographs
from drgrade.lesions.detector import load_detector
from drgrade.lesions.tiles import Tile, Tiling
from drgrade.params import LesionBoxes, Lesions
from drgrade.schema import LESION_BOXES, LESIONS, write_table
from drgrade.seeding import TORCH_THREADS

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Detections on one tile or photograph: boxes (n, 4), scores (n,), labels (n,) into ``LESIONS``."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> "Found":
        return Found(self.boxes[keep], self.scores[keep], self.labels[keep])


class TileDetector:
    """A trained detector for batches of tiles.

    Runs the test pipeline the detector was validated with, on pictures in memory.

    Args:
        folder: of :func:`drgrade.lesions.detector.train_detector`.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from mmcv.transforms import Compose

        torch.set_num_threads(TORCH_THREADS)
        model, config = load_detector(folder)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        in_memory = [step for step in config.test_pipeline if step["type"] != "LoadImageFromFile"]
        self.pipeline = Compose(in_memory)

    def __call__(self, tiles: list[np.ndarray]) -> list[Found]:
        """Detections on tiles (h, w, 3) uint8 RGB, in tile pixels."""
        import torch

        samples = [self._sample(tile) for tile in tiles]
        with torch.inference_mode():
            results = self.model.test_step({key: [sample[key] for sample in samples] for key in samples[0]})
        found = [result.pred_instances.cpu().numpy() for result in results]
        return [Found(one.bboxes.astype(np.float64), one.scores, one.labels) for one in found]

    def _sample(self, tile: np.ndarray) -> "dict[str, torch.Tensor]":
        shape = tile.shape[:2]
        picture = np.ascontiguousarray(tile[..., ::-1])  # mmdet reads files as BGR
        results = {"img": picture, "img_id": 0, "img_path": "", "ori_shape": shape, "img_shape": shape}
        return self.pipeline(results)


def detect_lesions(
    dataset: str, index: Path, crops: Path, detector: Path, boxes: LesionBoxes, params: Lesions, out: Path
) -> None:
    """Search every usable photograph, tile by tile, and write ``lesions.parquet`` in original pixels.

    Photographs are those of :func:`drgrade.lesions.coco.photographs`; one without a lesion has no row.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``; only the crop box is searched.
        detector: folder of the trained detector.
        boxes: how the detector's training tiles were cut; the same cut is searched.
        params: batch size and what to keep.
        out: the table to write, sorted by image_id, then by falling score.
    """
    find = TileDetector(detector)
    tiling = Tiling(boxes.tile, boxes.overlap, boxes.scale)
    frames: list[pd.DataFrame] = []
    waiting: dict[str, tuple[int, tuple[int, ...], list[Found]]] = {}
    tiles = _tiles(dataset, index, crops, tiling)
    while batch := list(islice(tiles, params.batch_size)):
        for piece, found in zip(batch, find([piece.tile.pixels for piece in batch]), strict=True):
            found = found[(found.scores >= params.min_score) & piece.tile.whole(found.boxes)]
            moved = Found(piece.tile.boxes_to_original(found.boxes), found.scores, found.labels)
            left, shape, parts = waiting.pop(piece.image_id, (piece.of, piece.shape, []))
            parts.append(moved)
            if left > 1:
                waiting[piece.image_id] = (left - 1, shape, parts)
            else:
                frames.append(_table(piece.image_id, merge(parts, shape, params)))
    table = pd.concat([_table("", merge([], (0, 0), params)), *frames])
    table = table.sort_values(["image_id", "score"], ascending=[True, False], kind="stable")
    write_table(table, out, LESION_BOXES)
    log.info("%d photographs searched, %d lesions found", len(frames), len(table))


def merge(parts: list[Found], shape: tuple[int, ...], params: Lesions) -> Found:
    """One photograph's detections from those of its tiles: clipped to (H, W), one for each lesion.

    Boxes of one kind that overlap by more than ``params.nms_iou`` are one lesion seen twice; at most
    ``params.max_per_image`` are kept, best first.
    """
    import torch
    from torchvision.ops import batched_nms

    empty = Found(np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int64))
    parts = [empty, *parts]
    boxes = np.concatenate([part.boxes for part in parts])
    boxes = np.clip(boxes, 0, [shape[1], shape[0], shape[1], shape[0]])
    found = Found(boxes, np.concatenate([p.scores for p in parts]), np.concatenate([p.labels for p in parts]))
    found = found[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    keep = batched_nms(
        torch.from_numpy(found.boxes).float(),
        torch.from_numpy(found.scores),
        torch.from_numpy(found.labels),
        params.nms_iou,
    )
    return found[keep[: params.max_per_image].numpy()]


@dataclass(frozen=True)
class _Piece:
    """A tile and the photograph it is of."""

    image_id: str
    tile: Tile
    shape: tuple[int, ...]  # of the photograph
    of: int  # tiles of the photograph


def _tiles(dataset: str, index: Path, crops: Path, tiling: Tiling) -> Iterator[_Piece]:
    """Tiles with anything on them, photograph after photograph; read ahead in a thread."""

    def cut() -> Iterator[list[_Piece]]:
        for row, image, box in photographs(dataset, index, crops, ("grading", "segmentation")):
            tiles = [tile for tile in tiling.cut(image, box) if not tile.outside]
            yield [_Piece(row["image_id"], tile, image.shape, len(tiles)) for tile in tiles]

    for pieces in prefetch(cut(), depth=2):
        yield from pieces


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items in their order, made up to ``depth`` ahead in one background thread."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(next, source, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]


def _table(image_id: str, found: Found) -> pd.DataFrame:
    table = pd.DataFrame(found.boxes, columns=["x1", "y1", "x2", "y2"])
    lesions = [LESIONS[label] for label in found.labels]
    return table.assign(image_id=image_id, score=found.scores, lesion=lesions)

"""Search photographs for lesions with the detector, tile by tile, in batches that may span photographs."""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.background import read_ahead
from drgrade.images.read import ReadError, read_photograph
from drgrade.lesions.found import NOTHING, Found, found_table, unread_table
from drgrade.lesions.tile_detector import TileDetector
from drgrade.lesions.tiles import Tile, Tiling
from drgrade.params import Lesions

log = logging.getLogger(__name__)

READERS = 4
"""Threads that read, tile and preprocess photographs while the detector runs."""
WHOLE = 2048
"""Side in pixels assumed for photographs that are not tiled, when the batch size for a GPU is computed."""


def search_tiles(
    find: TileDetector, tiling: Tiling, params: Lesions, rows: pd.DataFrame, root: Path
) -> pd.DataFrame:
    """Detect lesions on some photographs.

    Args:
        find: the detector.
        tiling: how photographs are cut; that of its training.
        params: batch size and which detections to keep.
        rows: image_id, path and crop box of the photographs.
        root: folder that the paths start from.

    Returns:
        A table of :data:`drgrade.lesions.found.PARTS`.
    """
    from drgrade.inference import batch_size, run_batches

    frames = [found_table("", NOTHING)]
    unread: dict[str, str] = {}
    under_way: deque[_Piece] = deque()

    def batches() -> Iterator[list[Any]]:
        size = batch_size(tiling.tile or WHOLE, params.batch_size)
        cut = partial(_cut, find, root, tiling, unread)
        pieces = chain.from_iterable(
            read_ahead(cut, rows.itertuples(index=False, name=None), threads=READERS, depth=READERS)
        )
        while batch := list(islice(pieces, size)):
            under_way.extend(batch)
            yield [piece.sample for piece in batch]

    waiting: dict[str, tuple[int, list[Found]]] = {}
    for found in chain.from_iterable(run_batches(find.detect, batches())):
        piece = under_way.popleft()
        found = found[(found.scores >= params.min_score) & piece.tile.whole(found.boxes)]
        moved = Found(piece.tile.boxes_to_original(found.boxes), found.scores, found.labels)
        left, parts = waiting.pop(piece.image_id, (piece.of, []))
        parts.append(moved)
        if left > 1:
            waiting[piece.image_id] = (left - 1, parts)
        else:
            frames.append(found_table(piece.image_id, merge(parts, piece.shape, params)))
    return pd.concat([*frames, unread_table(unread)])


def merge(parts: list[Found], shape: tuple[int, ...], params: Lesions) -> Found:
    """Merge the detections on a photograph's tiles: clip them to (H, W) and remove duplicates by NMS.

    Of boxes of one kind with an IoU above ``params.nms_iou`` only the best is kept; at most
    ``params.max_per_image`` detections are returned, best first.
    """
    import torch
    from torchvision.ops import batched_nms

    parts = [NOTHING, *parts]
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
    """A tile with its preprocessed detector input and its photograph's image_id."""

    image_id: str
    tile: Tile
    sample: Any
    shape: tuple[int, ...]  # (H, W, 3) of the photograph
    of: int  # number of tiles of the photograph


def _cut(
    find: TileDetector, root: Path, tiling: Tiling, unread: dict[str, str], row: tuple[Any, ...]
) -> list[_Piece]:
    """Return a photograph's tiles inside the field of view; if unreadable, none, and add it to ``unread``."""
    image_id, path, *edges = row
    try:
        image = read_photograph(root / path)
    except ReadError as error:
        log.warning("%s: skipped, %s", image_id, error)
        unread[image_id] = str(error)
        return []
    x0, y0, x1, y1 = map(int, edges)
    tiles = [tile for tile in tiling.cut(image, (x0, y0, x1, y1)) if not tile.outside]
    return [_Piece(image_id, tile, find.prepare(tile.pixels), image.shape, len(tiles)) for tile in tiles]

"""Boxes around the lesions that the segmentation marks, in the tables of the stage ``lesions``."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from drgrade.background import read_ahead
from drgrade.images.read import ReadError, read_photograph
from drgrade.images.rules import Box, RGBImage
from drgrade.lesions.found import NOTHING, Found, found_table, unread_table
from drgrade.params import LesionBoxes, Lesions
from drgrade.schema import LESIONS
from drgrade.segmentation.network import SegmentationNetwork
from drgrade.segmentation.predict import Maps, clipped, probabilities

log = logging.getLogger(__name__)


def marks(
    maps: Maps,
    kinds: Sequence[str],
    box: Box,
    shape: tuple[int, ...],
    params: Lesions,
    min_side: float = 0.0,
) -> Found:
    """Turn probabilities into boxes: one for each connected mark of each kind.

    A mark is a set of pixels above ``params.mark_threshold`` that touch, corners included. Its score is its
    highest probability.

    Args:
        maps: probabilities (K, h, w) over ``box``.
        kinds: the K kinds of lesions.
        box: (x0, y0, x1, y1) in original pixels, within the photograph.
        shape: (H, W, ...) of the photograph.
        params: ``mark_threshold``, ``min_mark``, ``min_score`` and ``max_per_image``.
        min_side: smaller boxes are enlarged to this side around their centres, in original pixels, as the
            boxes are that a detector learns from.

    Returns:
        Boxes (n, 4) in original pixels, clipped to the photograph; best first.
    """
    x0, y0, x1, y1 = box
    pixel = np.array([(x1 - x0) / maps.shape[2], (y1 - y0) / maps.shape[1]] * 2)  # its width and height
    boxes, scores, labels = [np.empty((0, 4))], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for kind, chance in zip(kinds, maps, strict=True):
        corners, best = _connected(chance, params)
        boxes.append(corners * pixel + [x0, y0, x0, y0])
        scores.append(best)
        labels.append(np.full(len(best), LESIONS.index(kind)))
    found = Found(np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels))
    grow = np.maximum(min_side - (found.boxes[:, 2:] - found.boxes[:, :2]), 0) / 2
    limits = [shape[1], shape[0]] * 2
    grown = np.concatenate([found.boxes[:, :2] - grow, found.boxes[:, 2:] + grow], axis=1).clip(0, limits)
    order = np.argsort(-found.scores, kind="stable")[: params.max_per_image]
    return Found(grown, found.scores, found.labels)[order]


def _connected(chance: np.ndarray, params: Lesions) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 4) in pixels of the map, and highest probability (n,), of the marks of one kind."""
    marked = (chance > params.mark_threshold).astype(np.uint8)
    count, number, about, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    inside = marked.astype(bool)
    best = np.zeros(count, np.float32)
    np.maximum.at(best, number[inside].astype(np.intp), chance[inside])
    left, top, wide, high, area = about.T
    kept = (area >= params.min_mark) & (best >= params.min_score) & (np.arange(count) > 0)  # 0: no mark
    corners = np.stack([left, top, left + wide, top + high], axis=1)
    return corners[kept].astype(np.float64), best[kept]


def search_marks(
    network: SegmentationNetwork, boxes: LesionBoxes, params: Lesions, rows: pd.DataFrame, root: Path
) -> pd.DataFrame:
    """Find the lesions of some photographs; the next ones are read while the network runs.

    Args:
        network: trained network in evaluation mode.
        boxes: ``min_side``, in pixels after ``scale``.
        params: which marks to keep.
        rows: image_id, path and crop box of the photographs.
        root: folder that the paths start from.

    Returns:
        A table of :data:`drgrade.lesions.found.PARTS`.
    """
    frames, unread = [found_table("", NOTHING)], dict[str, str]()
    opened = partial(_open, root, unread)
    for image_id, image, box in _read(read_ahead(opened, rows.itertuples(index=False, name=None), depth=1)):
        maps = probabilities(network, image, box)
        own = marks(
            maps, network.kinds, clipped(box, image.shape), image.shape, params, boxes.min_side / boxes.scale
        )
        frames.append(found_table(image_id, own))
    return pd.concat([*frames, unread_table(unread)])


Opened = tuple[str, RGBImage | None, Box]


def _open(root: Path, unread: dict[str, str], row: tuple[Any, ...]) -> Opened:
    """Read a photograph; its pixels are None, and the reason is in ``unread``, if that fails."""
    image_id, path, *edges = row
    x0, y0, x1, y1 = map(int, edges)
    try:
        return image_id, read_photograph(root / path), (x0, y0, x1, y1)
    except ReadError as error:
        log.warning("%s: skipped, %s", image_id, error)
        unread[image_id] = str(error)
        return image_id, None, (x0, y0, x1, y1)


def _read(opened: Iterator[Opened]) -> Iterator[tuple[str, RGBImage, Box]]:
    """Only the photographs that could be read."""
    return ((image_id, image, box) for image_id, image, box in opened if image is not None)

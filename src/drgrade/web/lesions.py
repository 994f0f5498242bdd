"""Find lesions on one photograph with a trained detector, and draw them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import cv2
import numpy as np

from drgrade.explain.overlay import shrunk
from drgrade.images.rules import RGBImage
from drgrade.lesions.found import Found
from drgrade.lesions.tile_detector import TileDetector
from drgrade.lesions.tile_search import merge
from drgrade.lesions.tiles import Tiling
from drgrade.params import LesionBoxes, Lesions
from drgrade.report.plots import LESION_COLOURS
from drgrade.schema import LESION_NAMES, LESIONS

MIN_SCORE = 0.3
"""Detections with a lower score are not shown. The stage lesions keeps more of them, as patches to learn from
may be doubtful."""
COLOUR_NAMES = {"MA": "cyan", "HE": "white", "EX": "yellow", "SE": "pink"}
"""The colours of the boxes, LESION_COLOURS, in words."""


class Detector(Protocol):
    """Detects lesions on tiles (h, w, 3) uint8 RGB; boxes are in tile pixels."""

    def __call__(self, tiles: list[np.ndarray], /) -> Sequence[Found]:
        """Return what is found on each tile."""
        ...


@dataclass(frozen=True)
class LesionFinder:
    """Searches one photograph at a time, as ``drgrade lesions`` searches a dataset.

    Attributes:
        detector: the trained detector.
        tiling: how its training photographs were cut.
        params: batch size and which detections to keep.
    """

    detector: Detector
    tiling: Tiling
    params: Lesions

    @classmethod
    def load(cls, folder: Path, boxes: LesionBoxes) -> Self:
        """Load a detector, which takes some seconds.

        Args:
            folder: output of the stage detector.
            boxes: the block ``lesion_boxes`` that it was trained with.

        Raises:
            UserError: the folder holds no detector, or a damaged one.
        """
        tiling = Tiling(boxes.tile, boxes.overlap, boxes.scale)
        return cls(TileDetector(folder, MIN_SCORE), tiling, Lesions(min_score=MIN_SCORE))

    def find(self, image: RGBImage, box: tuple[int, int, int, int]) -> Found:
        """Return the lesions inside a crop box (x0, y0, x1, y1), best first, in pixels of the image."""
        tiles = [tile for tile in self.tiling.cut(image, box) if not tile.outside]
        size, parts = self.params.batch_size, []
        for start in range(0, len(tiles), size):
            batch = tiles[start : start + size]
            for tile, found in zip(batch, self.detector([tile.pixels for tile in batch]), strict=True):
                sure = found[(found.scores >= self.params.min_score) & tile.whole(found.boxes)]
                parts.append(Found(tile.boxes_to_original(sure.boxes), sure.scores, sure.labels))
        return merge(parts, image.shape, self.params)


def draw(image: RGBImage, found: Found) -> RGBImage:
    """Draw the boxes of lesions on a copy of a photograph that is at most 1024 pixels wide or high."""
    drawing = np.ascontiguousarray(shrunk(image))
    corners = np.round(found.boxes * (drawing.shape[1] / image.shape[1])).astype(int)
    for (x1, y1, x2, y2), label in zip(corners.tolist(), found.labels, strict=True):
        colour = LESION_COLOURS[LESIONS[label]].removeprefix("#")
        cv2.rectangle(drawing, (x1, y1), (x2, y2), tuple(bytes.fromhex(colour)), 2)
    return drawing


def summary(found: Found) -> str:
    """Return the numbers of lesions by kind in words, with the colours of their boxes."""
    counts = Counter(LESIONS[label] for label in found.labels)
    kinds = [
        f"{LESION_NAMES[kind]} {counts[kind]} ({COLOUR_NAMES[kind]})" for kind in LESIONS if counts[kind]
    ]
    return ", ".join(kinds) or "none found"

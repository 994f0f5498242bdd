"""Photographs cut into overlapping tiles, and boxes between tile pixels and original pixels.

Training (:mod:`.coco`) and search (:mod:`.predict`) cut through the same class, so a detector sees
in use what it saw in training.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

SEAM = 2.0
"""A box within this many tile pixels of a seam ends there."""
DARK = 24
"""A pixel with no channel above this is outside the field of view (0-255)."""


@dataclass(frozen=True)
class Tile:
    """One tile of a photograph.

    Frame: tile pixel = (original pixel - origin) * factor - offset, in pixel-edge coordinates.
    """

    pixels: np.ndarray  # (h, w, 3) uint8 RGB
    origin: tuple[int, int]  # x, y of the cut region in original pixels
    factor: tuple[float, float]  # scaled pixels for each original pixel, along x and y
    offset: tuple[int, int]  # x, y of the tile in the scaled region
    shared: tuple[int, int, int, int] = (
        0,
        0,
        0,
        0,
    )  # pixels shared with the neighbour left, above, right, below

    def boxes_to_tile(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) boxes in original pixels, in tile pixels; not clipped."""
        return (boxes - np.array(self.origin * 2)) * np.array(self.factor * 2) - np.array(self.offset * 2)

    def boxes_to_original(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) boxes in tile pixels, in original pixels: the inverse of :meth:`boxes_to_tile`."""
        return (boxes + np.array(self.offset * 2)) / np.array(self.factor * 2) + np.array(self.origin * 2)

    def whole(self, boxes: np.ndarray) -> np.ndarray:
        """Which boxes (n, 4) in tile pixels no neighbour shows better; (n,) bool.

        A box that ends at a seam is a fragment. The neighbour shows as much of the lesion and what lies
        beyond the seam, if the box lies within the pixels the two share.
        """
        height, width = self.pixels.shape[:2]
        x1, y1, x2, y2 = boxes.T
        left, top, right, bottom = self.shared
        fragment = (x1 <= SEAM) & (x2 <= left) | (x2 >= width - SEAM) & (x1 >= width - right)
        fragment |= (y1 <= SEAM) & (y2 <= top) | (y2 >= height - SEAM) & (y1 >= height - bottom)
        return ~fragment

    @property
    def outside(self) -> bool:
        """Whether the tile shows (nearly) nothing but the black around the field of view."""
        dark = cv2.countNonZero(cv2.inRange(self.pixels, (0, 0, 0), (DARK, DARK, DARK)))
        height, width = self.pixels.shape[:2]
        return 1 - dark / (height * width) < 0.01


@dataclass(frozen=True)
class Tiling:
    """How photographs are cut: the crop box is scaled, then covered by tiles of one size."""

    tile: int | None  # side in scaled pixels; None takes the region whole
    overlap: float  # least overlap of neighbours, as a share of the side
    scale: float  # resize factor before tiling

    def cut(self, image: np.ndarray, box: tuple[int, int, int, int], labels: bool = False) -> Iterator[Tile]:
        """The tiles of ``image`` (H, W, C) inside ``box`` (x0, y0, x1, y1; may reach outside the image).

        Every pixel of the region lies in a tile; a region smaller than a tile is padded with black on the
        right and below. Tiles that show only the surround are included: see :attr:`Tile.outside`.
        ``labels`` says that pixels are numbers of things, which scaling must not mix.
        """
        height, width = image.shape[:2]
        x0, y0 = max(box[0], 0), max(box[1], 0)
        region = image[y0 : min(box[3], height), x0 : min(box[2], width)]
        height, width = region.shape[:2]
        wide, high = max(round(width * self.scale), 1), max(round(height * self.scale), 1)
        if self.scale != 1:
            smooth = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
            region = cv2.resize(
                region, (wide, high), interpolation=cv2.INTER_NEAREST_EXACT if labels else smooth
            ).reshape(high, wide, -1)  # it drops an axis of one channel
        factor = (wide / width, high / height)
        for y, above, below in self._steps(high):
            for x, left, right in self._steps(wide):
                pixels = self._square(region[y:, x:])
                yield Tile(pixels, (x0, y0), factor, (x, y), (left, above, right, below))

    def offsets(self, length: int) -> list[int]:
        """Where tiles start along an axis of ``length`` scaled pixels: evenly, the last one flush."""
        if self.tile is None or length <= self.tile:
            return [0]
        room = length - self.tile
        steps = math.ceil(room / max(int(self.tile * (1 - self.overlap)), 1))
        return [round(room * step / steps) for step in range(steps + 1)]

    def _steps(self, length: int) -> list[tuple[int, int, int]]:
        """Start of each tile along an axis, and the pixels it shares with the one before and after it."""
        starts = self.offsets(length)
        shared = [0, *(before + (self.tile or 0) - after for before, after in pairwise(starts)), 0]
        return list(zip(starts, shared[:-1], shared[1:], strict=True))

    def _square(self, pixels: np.ndarray) -> np.ndarray:
        if self.tile is None:
            return pixels
        pixels = pixels[: self.tile, : self.tile]
        missing = (self.tile - pixels.shape[0], self.tile - pixels.shape[1])
        if any(missing):
            return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)))
        return pixels

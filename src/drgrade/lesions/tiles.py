"""Cut photographs into overlapping tiles, and convert boxes between tile pixels and original pixels.

Training (:mod:`.coco`) and inference (:mod:`.predict`) use the same class, so that a detector gets the
same kind of tiles in both.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

SEAM = 2.0
"""A box is cut off by a tile's edge if it comes within this many tile pixels of it."""
DARK = 24
"""A pixel counts as outside the field of view if no channel (0-255) exceeds this."""


@dataclass(frozen=True)
class Tile:
    """One tile of a photograph.

    Coordinates: tile pixel = (original pixel - origin) * factor - offset, where 0 is the edge of a pixel.
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
        """Convert boxes (n, 4) from original pixels to tile pixels, without clipping."""
        return (boxes - np.array(self.origin * 2)) * np.array(self.factor * 2) - np.array(self.offset * 2)

    def boxes_to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes (n, 4) from tile pixels to original pixels: the inverse of :meth:`boxes_to_tile`."""
        return (boxes + np.array(self.offset * 2)) / np.array(self.factor * 2) + np.array(self.origin * 2)

    def whole(self, boxes: np.ndarray) -> np.ndarray:
        """Return which boxes (n, 4) in tile pixels are not better visible on a neighbouring tile; (n,) bool.

        A box that ends at the tile's edge is a fragment if it lies entirely in the overlap with the
        neighbour there: the neighbour shows the same part of the lesion and its continuation.
        """
        height, width = self.pixels.shape[:2]
        x1, y1, x2, y2 = boxes.T
        left, top, right, bottom = self.shared
        fragment = (x1 <= SEAM) & (x2 <= left) | (x2 >= width - SEAM) & (x1 >= width - right)
        fragment |= (y1 <= SEAM) & (y2 <= top) | (y2 >= height - SEAM) & (y1 >= height - bottom)
        return ~fragment

    @property
    def outside(self) -> bool:
        """Whether less than 1 % of the tile's pixels lie inside the field of view."""
        dark = cv2.countNonZero(cv2.inRange(self.pixels, (0, 0, 0), (DARK, DARK, DARK)))
        height, width = self.pixels.shape[:2]
        return 1 - dark / (height * width) < 0.01


@dataclass(frozen=True)
class Tiling:
    """How photographs are cut: the crop box is scaled, then covered by tiles of one size."""

    tile: int | None  # side in scaled pixels; None: the whole region is one tile
    overlap: float  # minimum overlap of neighbouring tiles, as a fraction of the side
    scale: float  # resize factor before tiling

    def cut(self, image: np.ndarray, box: tuple[int, int, int, int], labels: bool = False) -> Iterator[Tile]:
        """Yield the tiles of ``image`` (H, W, C) inside ``box`` (x0, y0, x1, y1; may exceed the image).

        Every pixel of the region lies in a tile; a region smaller than a tile is padded with black on the
        right and below. Tiles outside the field of view are included: see :attr:`Tile.outside`. With
        ``labels`` the image is a label map and is scaled by nearest neighbour, without interpolation.
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
            ).reshape(high, wide, -1)  # cv2 drops the axis of a single channel
        factor = (wide / width, high / height)
        for y, above, below in self._steps(high):
            for x, left, right in self._steps(wide):
                pixels = self._square(region[y:, x:])
                yield Tile(pixels, (x0, y0), factor, (x, y), (left, above, right, below))

    def offsets(self, length: int) -> list[int]:
        """Return the starts of tiles along an axis of ``length`` scaled pixels, evenly spaced to its end."""
        if self.tile is None or length <= self.tile:
            return [0]
        room = length - self.tile
        steps = math.ceil(room / max(int(self.tile * (1 - self.overlap)), 1))
        return [round(room * step / steps) for step in range(steps + 1)]

    def _steps(self, length: int) -> list[tuple[int, int, int]]:
        """Return each tile's start along an axis and its overlap in pixels with the previous and next."""
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

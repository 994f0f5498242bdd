"""Photographs cut into overlapping tiles, and boxes between tile pixels and original pixels.

Training (:mod:`.coco`) and search (:mod:`.predict`) cut through the same class, so a detector sees
in use what it saw in training.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

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

    def boxes_to_tile(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) boxes in original pixels, in tile pixels; not clipped."""
        return (boxes - np.array(self.origin * 2)) * np.array(self.factor * 2) - np.array(self.offset * 2)

    def boxes_to_original(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) boxes in tile pixels, in original pixels: the inverse of :meth:`boxes_to_tile`."""
        return (boxes + np.array(self.offset * 2)) / np.array(self.factor * 2) + np.array(self.origin * 2)

    @property
    def outside(self) -> bool:
        """Whether the tile shows (nearly) nothing but the black around the field of view."""
        return bool((self.pixels.max(axis=2) > DARK).mean() < 0.01)


@dataclass(frozen=True)
class Tiling:
    """How photographs are cut: the crop box is scaled, then covered by tiles of one size."""

    tile: int | None  # side in scaled pixels; None takes the region whole
    overlap: float  # least overlap of neighbours, as a share of the side
    scale: float  # resize factor before tiling

    def cut(self, image: np.ndarray, box: tuple[int, int, int, int]) -> Iterator[Tile]:
        """The tiles of ``image`` (H, W, 3) inside ``box`` (x0, y0, x1, y1; may reach outside the image).

        Every pixel of the region lies in a tile; a region smaller than a tile is padded with black on the
        right and below. Tiles that show only the surround are included: see :attr:`Tile.outside`.
        """
        height, width = image.shape[:2]
        x0, y0 = max(box[0], 0), max(box[1], 0)
        region = image[y0 : min(box[3], height), x0 : min(box[2], width)]
        height, width = region.shape[:2]
        wide, high = max(round(width * self.scale), 1), max(round(height * self.scale), 1)
        if self.scale != 1:
            shrink = self.scale < 1
            region = cv2.resize(
                region, (wide, high), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
            )
        factor = (wide / width, high / height)
        for y in self.offsets(high):
            for x in self.offsets(wide):
                yield Tile(self._square(region[y:, x:]), (x0, y0), factor, (x, y))

    def offsets(self, length: int) -> list[int]:
        """Where tiles start along an axis of ``length`` scaled pixels: evenly, the last one flush."""
        if self.tile is None or length <= self.tile:
            return [0]
        room = length - self.tile
        steps = math.ceil(room / max(int(self.tile * (1 - self.overlap)), 1))
        return [round(room * step / steps) for step in range(steps + 1)]

    def _square(self, pixels: np.ndarray) -> np.ndarray:
        if self.tile is None:
            return pixels
        pixels = pixels[: self.tile, : self.tile]
        missing = (self.tile - pixels.shape[0], self.tile - pixels.shape[1])
        if any(missing):
            return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)))
        return pixels

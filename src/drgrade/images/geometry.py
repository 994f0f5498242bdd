"""Geometry of a crop in its photograph: transforms points, boxes and masks between the two.

Coordinates are pixel edges: 0 is the left edge of the first pixel, the width is the right edge of the last,
so the pixel in column ``i`` covers ``[i, i + 1)`` and has its centre at ``i + 0.5``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Edges = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CropGeometry:
    """A box of the photograph that fills a square crop.

    Attributes:
        x0: left edge of the box in original pixels, inclusive.
        y0: top edge, inclusive.
        x1: right edge, exclusive.
        y1: bottom edge, exclusive. The box may reach outside the photograph, where the crop is black.
        size: side of the crop in pixels.

    Example:
        >>> CropGeometry(100, 0, 300, 200, size=50).to_crop([[200, 100]]).tolist()
        [[25.0, 25.0]]
    """

    x0: int
    y0: int
    x1: int
    y1: int
    size: int

    def __post_init__(self) -> None:
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"crop box {self.box} is empty")
        if self.size < 1:
            raise ValueError(f"crop size {self.size} is not positive")

    @classmethod
    def from_row(cls, row: Mapping[str, Any] | Any, size: int) -> Self:
        """The geometry in a row of ``crops.parquet`` (a mapping or Series with x0, y0, x1, y1)."""
        return cls(int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"]), size)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box as (x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def scale_x(self) -> float:
        """Crop pixels per original pixel, horizontally."""
        return self.size / (self.x1 - self.x0)

    @property
    def scale_y(self) -> float:
        """Crop pixels per original pixel, vertically."""
        return self.size / (self.y1 - self.y0)

    @property
    def scale(self) -> float:
        """Crop pixels per original pixel; the geometric mean if the two directions differ."""
        if self.x1 - self.x0 == self.y1 - self.y0:
            return self.scale_x
        return float(np.sqrt(self.scale_x * self.scale_y))

    def to_crop(self, points: npt.ArrayLike) -> Floats:
        """Transform points (n, 2), (x, y), from original to crop pixels. They are not clamped to the crop."""
        return (_rows(points, 2) - self._origin) * self.size / self._side

    def to_original(self, points: npt.ArrayLike) -> Floats:
        """Transform points (n, 2), (x, y), from crop to original pixels."""
        return _rows(points, 2) * self._side / self.size + self._origin

    def boxes_to_crop(self, boxes: npt.ArrayLike) -> Floats:
        """Transform boxes (n, 4), (x1, y1, x2, y2), from original to crop pixels."""
        return self.to_crop(_rows(boxes, 4).reshape(-1, 2)).reshape(-1, 4)

    def boxes_to_original(self, boxes: npt.ArrayLike) -> Floats:
        """Transform boxes (n, 4), (x1, y1, x2, y2), from crop to original pixels."""
        return self.to_original(_rows(boxes, 4).reshape(-1, 2)).reshape(-1, 4)

    def mask_to_crop(self, mask: npt.ArrayLike) -> Mask:
        """Transform a mask (H, W) of the photograph to crop pixels: (size, size) bool.

        A crop pixel is set if any set pixel of the photograph overlaps it, so that no lesion is lost when
        shrinking; edges move outwards by less than a crop pixel. Pixels outside the photograph are not set.
        """
        rows, columns = self._photograph_edges(self.y0, self.y1), self._photograph_edges(self.x0, self.x1)
        return _any_in(_any_in(_mask(mask), rows).T, columns).T

    def mask_to_original(self, mask: npt.ArrayLike, width: int, height: int) -> Mask:
        """Transform a mask (size, size) of the crop to pixels of the photograph: (height, width) bool.

        A pixel is set if any set pixel of the crop overlaps it; pixels outside the crop are not set. After a
        round trip at least the originally set pixels are set.
        """
        crop = _mask(mask)
        if crop.shape != (self.size, self.size):
            raise ValueError(f"expected a mask of shape {(self.size, self.size)}, got {crop.shape}")
        rows = self._crop_edges(height, self.y0, self.y1)
        columns = self._crop_edges(width, self.x0, self.x1)
        return _any_in(_any_in(crop, rows).T, columns).T

    def _photograph_edges(self, low: int, high: int) -> tuple[Edges, Edges]:
        """For each crop pixel along an axis, the first overlapping original pixel, and one past the last."""
        pixel = np.arange(self.size)
        side = high - low
        return low + pixel * side // self.size, low - (-(pixel + 1) * side // self.size)

    def _crop_edges(self, length: int, low: int, high: int) -> tuple[Edges, Edges]:
        """For each of ``length`` original pixels, the first overlapping crop pixel, and one past the last."""
        pixel = np.arange(length) - low
        side = high - low
        return pixel * self.size // side, -(-(pixel + 1) * self.size // side)

    @property
    def _origin(self) -> Floats:
        return np.array([self.x0, self.y0], dtype=np.float64)

    @property
    def _side(self) -> Floats:
        return np.array([self.x1 - self.x0, self.y1 - self.y0], dtype=np.float64)


def boxes_to_crops(boxes: npt.ArrayLike, crop_boxes: npt.ArrayLike, size: float | Floats) -> Floats:
    """Transform boxes of many photographs, each from original pixels to those of its own crop.

    The same as :meth:`CropGeometry.boxes_to_crop` box by box, for millions of them.

    Args:
        boxes: (n, 4), (x1, y1, x2, y2).
        crop_boxes: box (n, 4), (x0, y0, x1, y1), of the crop that each belongs to, in original pixels.
        size: side of the crops in pixels, one for all or (n, 1).

    Returns:
        (n, 4); not clamped to the crops.
    """
    frames = _rows(crop_boxes, 4)
    origin, end = np.tile(frames[:, :2], 2), np.tile(frames[:, 2:], 2)
    return (_rows(boxes, 4) - origin) * size / (end - origin)


def _mask(values: npt.ArrayLike) -> Mask:
    mask = np.asarray(values)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), got {mask.shape}")
    return mask != 0


def _any_in(mask: Mask, edges: tuple[Edges, Edges]) -> Mask:
    """For each half-open range of rows, the columns with a set pixel; none for an empty range."""
    start, stop = (edge.clip(0, len(mask)) for edge in edges)
    found = np.zeros((len(start), mask.shape[1]), bool)
    some = stop > start
    if some.any():
        # reduceat reduces from each index to the next: starts and stops alternate; one extra row for the last
        padded = np.concatenate([mask, np.zeros((1, mask.shape[1]), bool)])
        found[some] = np.logical_or.reduceat(padded, np.stack([start, stop], axis=1)[some].ravel())[::2]
    return found


def _rows(values: npt.ArrayLike, columns: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"expected shape (n, {columns}), got {array.shape}")
    return array

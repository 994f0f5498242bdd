"""Random training tiles of photographs with masks, drawn from (seed, epoch, position) only."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.lesions.mask_store import BITS
from drgrade.params import Segmentation
from drgrade.rng import derive_each, uniforms
from drgrade.segmentation.regions import Bytes, Region, resized_bits


class Tiles(NamedTuple):
    """A batch of tiles.

    Attributes:
        images: uint8 RGB (B, 3, T, T), channels last in memory.
        masks: uint8 (B, T, T), a bit for each kind of lesion.
        annotated: bits of the kinds that were annotated, uint8 (B,).
    """

    images: Tensor
    masks: Tensor
    annotated: Tensor


class Draws(NamedTuple):
    """Uniform numbers in 0-1 for one tile."""

    lesion: float  # whether there is a lesion in the middle
    kind: float
    pixel: float
    y: float
    x: float
    zoom: float
    symmetry: float


class Windows:
    """Training tiles: windows of the photographs, zoomed, flipped and rotated by right angles.

    The share ``lesion_share`` of the tiles shows a lesion: a random pixel of a random kind of the photograph,
    all its kinds equally likely, lies at a random place in the middle half of the window, so that the network
    cannot learn that lesions are in the centre. Other windows lie anywhere. Windows lie within the
    photograph's region; where one is larger than the region, it is black outside.

    Args:
        regions: training photographs; each is cut ``tiles_per_photograph`` times in an epoch.
        params: tile, zoom, shares and seed.
    """

    def __init__(self, regions: Sequence[Region], params: Segmentation) -> None:
        self.regions, self.params = regions, params
        self.lesions = [_lesion_rows(region) for region in regions]

    def __len__(self) -> int:
        """Number of tiles in an epoch."""
        return len(self.regions) * self.params.tiles_per_photograph

    def tiles(self, positions: npt.NDArray[np.int64], epoch: int) -> Tiles:
        """Cut a batch.

        Args:
            positions: numbers (B,) of tiles in the epoch, 0 to ``len(self) - 1``.
            epoch: counted from 0.
        """
        seeds = derive_each(positions, self.params.seed, "windows", epoch)
        numbers = positions // self.params.tiles_per_photograph
        side = self.params.tile
        images = np.empty((len(positions), side, side, 3), np.uint8)
        masks = np.empty((len(positions), side, side), np.uint8)
        for place, draws in enumerate(uniforms(seeds, len(Draws._fields)).T):
            images[place], masks[place] = self._tile(int(numbers[place]), Draws(*draws.tolist()))
        annotated = np.array([self.regions[number].annotated for number in numbers], np.uint8)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return Tiles(pixels, torch.from_numpy(masks), torch.from_numpy(annotated))

    def _tile(self, number: int, draws: Draws) -> tuple[Bytes, Bytes]:
        """Pixels (T, T, 3) and masks (T, T) of one tile of a photograph."""
        region, tile = self.regions[number], self.params.tile
        least, most = self.params.zoom
        side = max(1, round(tile / (least * (most / least) ** draws.zoom)))
        room = np.array(region.masks.shape) - side
        low, high = np.minimum(room, 0), np.maximum(room, 0)
        spread = np.array([draws.y, draws.x])
        origin = low + (spread * (high - low + 1)).astype(int)
        if self.lesions[number] and draws.lesion < self.params.lesion_share:
            pixel = self._lesion_pixel(number, draws)
            origin = (pixel - (side * (0.25 + spread / 2)).astype(int)).clip(low, high)
        pixels, masks = (_window(array, origin, side) for array in (region.pixels, region.masks))
        if side != tile:
            smooth = cv2.INTER_AREA if side > tile else cv2.INTER_LINEAR
            pixels = cv2.resize(pixels, (tile, tile), interpolation=smooth).astype(np.uint8, copy=False)
            masks = resized_bits(masks, tile, tile)
        return _turned(pixels, draws.symmetry), _turned(masks, draws.symmetry)

    def _lesion_pixel(self, number: int, draws: Draws) -> npt.NDArray[np.int64]:
        """Row and column of a random lesion pixel of a photograph that shows lesions."""
        lesions = self.lesions[number]
        bit = list(lesions)[int(draws.kind * len(lesions))]
        pixel = int(draws.pixel * lesions[bit][-1])
        row = int(np.searchsorted(lesions[bit], pixel, side="right"))
        before = int(lesions[bit][row - 1]) if row else 0
        columns = np.flatnonzero(self.regions[number].masks[row] & bit)
        return np.array([row, columns[pixel - before]])


def _lesion_rows(region: Region) -> dict[int, npt.NDArray[np.int64]]:
    """For each kind that a photograph shows, by its bit: the number of its pixels down to each row."""
    counts = {bit: np.count_nonzero(region.masks & bit, axis=1).cumsum() for bit in BITS.values()}
    return {bit: rows for bit, rows in counts.items() if rows[-1]}


def _window(array: Bytes, origin: npt.NDArray[np.int64], side: int) -> Bytes:
    """A square of an array (h, w, ...) from ``origin`` (y, x), 0 outside the array."""
    y, x = origin.tolist()
    inside = array[max(y, 0) : y + side, max(x, 0) : x + side]
    if inside.shape[:2] == (side, side):
        return inside
    window = np.zeros((side, side, *array.shape[2:]), np.uint8)
    top, left = max(-y, 0), max(-x, 0)
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window


def _turned(array: Bytes, uniform: float) -> Bytes:
    """One of the 8 symmetries of a square array (T, T, ...)."""
    turns, flip = int(uniform * 8) % 4, uniform >= 0.5
    turned = np.rot90(array, turns)
    return turned[:, ::-1] if flip else turned

"""Lesion probabilities of a photograph: overlapping tiles, blended smoothly, with test-time augmentation."""

from itertools import product
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch

from drgrade.device import device
from drgrade.images.rules import Box, RGBImage
from drgrade.inference import batch_size, run_batches
from drgrade.lesions.tiles import Tiling

if TYPE_CHECKING:
    from drgrade.segmentation.network import SegmentationNetwork

Maps = npt.NDArray[np.float32]

CPU_TILES = 4
"""Tiles per forward pass on a CPU."""
DECODER = 4
"""A decoder at full resolution needs about this many times the memory of an encoder alone, for which
:func:`drgrade.inference.batch_size` is made."""
SYMMETRIES = {1: [(0, False)], 8: list(product(range(4), (False, True)))}
"""Quarter turns, and whether a mirror image follows, by the number of transforms."""


def probabilities(network: "SegmentationNetwork", image: RGBImage, box: Box) -> Maps:
    """Predict the probability of each kind of lesion at each pixel of the scaled crop box.

    The box is scaled and cut into overlapping tiles as in ``network.params``. Where tiles overlap, their
    probabilities are averaged, with weights that fall smoothly towards the edges of a tile, where a network
    sees little of the surroundings. With ``transforms: 8`` the prediction of a tile is the mean over all
    flips and rotations by right angles. Tiles outside the field of view are skipped.

    Args:
        network: trained network in evaluation mode; moved to the GPU where there is one.
        image: uint8 RGB (H, W, 3).
        box: (x0, y0, x1, y1) in pixels of ``image``; clipped to it.

    Returns:
        float32 (K, h, w), 0-1, in the order of ``network.kinds``; h and w are the sides of the clipped box
        times ``scale``, rounded. 0 where all tiles were skipped.
    """
    params, target = network.params, device()
    network.to(target)
    tiles = Tiling(params.tile, params.overlap, params.scale).cut(image, box)
    inside = [tile for tile in tiles if not tile.outside]
    high, wide = scaled_size(box, image.shape, params.scale)
    # a region smaller than a tile is padded to one
    room = max(high, params.tile), max(wide, params.tile)
    total = torch.zeros((len(network.kinds), *room), device=target)
    weight = torch.zeros(room, device=target)
    window = smooth_window(params.tile).to(target)
    size = max(1, batch_size(params.tile, CPU_TILES * DECODER) // DECODER)
    batches = (
        torch.from_numpy(np.stack([tile.pixels for tile in inside[start : start + size]]))
        for start in range(0, len(inside), size)
    )

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return _mean_prediction(network, batch.to(target).permute(0, 3, 1, 2), params.transforms)

    found = (values for part in run_batches(forward, batches) for values in part)
    for tile, values in zip(inside, found, strict=True):
        x, y = tile.offset
        place = np.s_[y : y + params.tile, x : x + params.tile]
        total[:, *place] += window * values
        weight[place] += window
    mean = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return mean[:, :high, :wide].clamp(0, 1).cpu().numpy()


def to_photograph(maps: Maps, box: Box, shape: tuple[int, ...]) -> Maps:
    """Resample maps of a scaled crop box to the pixels of the photograph, bilinearly.

    Args:
        maps: (K, h, w) over the box, at any resolution.
        box: (x0, y0, x1, y1) in original pixels; clipped to the photograph.
        shape: (H, W, ...) of the photograph.

    Returns:
        float32 (K, H, W); 0 outside the box.
    """
    x0, y0, x1, y1 = clipped(box, shape)
    size = x1 - x0, y1 - y0
    method = cv2.INTER_AREA if maps.shape[1] > size[1] else cv2.INTER_LINEAR
    original = np.zeros((len(maps), *shape[:2]), np.float32)
    for values, place in zip(maps, original, strict=True):
        place[y0:y1, x0:x1] = cv2.resize(values, size, interpolation=method)
    return original


def clipped(box: Box, shape: tuple[int, ...]) -> Box:
    """Return the part of a box (x0, y0, x1, y1) that lies in a photograph of ``shape`` (H, W, ...)."""
    x0, y0, x1, y1 = box
    return max(x0, 0), max(y0, 0), min(x1, shape[1]), min(y1, shape[0])


def scaled_size(box: Box, shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Return the height and width of the clipped box after scaling, as :meth:`.Tiling.cut` scales it."""
    x0, y0, x1, y1 = clipped(box, shape)
    return max(round((y1 - y0) * scale), 1), max(round((x1 - x0) * scale), 1)


def smooth_window(side: int) -> torch.Tensor:
    """Return weights (side, side) that fall from 1 in the centre towards the edges, but not to 0: Hann's."""
    slope = torch.sin(torch.pi * (torch.arange(side, dtype=torch.float64) + 0.5) / side) ** 2
    return torch.outer(slope, slope).float()


def _mean_prediction(network: "SegmentationNetwork", batch: torch.Tensor, transforms: int) -> torch.Tensor:
    """Mean probabilities (B, K, T, T) over the symmetries of the square, for tiles (B, 3, T, T)."""
    total: torch.Tensor | None = None
    for turns, mirrored in SYMMETRIES[transforms]:
        moved = torch.rot90(batch, turns, (2, 3))
        moved = moved.flip(3) if mirrored else moved
        values = network(moved).float().sigmoid()
        values = values.flip(3) if mirrored else values
        values = torch.rot90(values, -turns, (2, 3))
        total = values if total is None else total + values
    assert total is not None
    return total / transforms

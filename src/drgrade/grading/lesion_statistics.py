"""Numbers and sizes of the lesions that a segmentation network marks in whole crops."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import nn

from drgrade.background import read_ahead
from drgrade.device import device
from drgrade.images.store import Images
from drgrade.inference import batch_size, run_batches
from drgrade.segmentation.network import SegmentationNetwork
from drgrade.training import pictures

THRESHOLDS = (0.2, 0.5, 0.8)
"""Probabilities above which a pixel counts as marked."""
RANKS = (1e-6, 1e-4, 5e-4, 2e-3)
"""Shares of the pixels whose lowest probability is a feature: at the first, the highest of all."""
SMALLEST = 4 / 1024**2
"""Smaller connected marks, as a share of the crop's area, are not counted."""
PER_KIND = 1 + 3 * len(THRESHOLDS) + 8 + len(RANKS)
"""Numbers for each kind of lesion."""
FLOOR = 1e-5
"""Added before the logarithm."""
CPU_CROPS = 1
"""Crops per forward pass on a CPU: a decoder at full resolution needs much memory."""
DECODER = 4
"""It needs about this many times the memory of an encoder, for which batch sizes are made."""


class LesionRegression(nn.Module):
    """A segmentation network, and one linear unit on the statistics of its marks.

    The statistics are computed outside of torch, so this module has no forward pass.

    Args:
        segmentation: marks K kinds of lesions.
    """

    def __init__(self, segmentation: SegmentationNetwork) -> None:
        super().__init__()
        self.segmentation = segmentation.requires_grad_(False).eval()
        self.head = nn.Linear(PER_KIND * len(segmentation.kinds), 1)

    def set_head(self, weights: np.ndarray, constant: float) -> None:
        """Set the linear unit: weights (D,)."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weights)[None])
            self.head.bias.fill_(constant)

    def linear(self) -> tuple[np.ndarray, float]:
        """Return weights float64 (D,) and constant of the linear unit."""
        return self.head.weight.detach().cpu().double().numpy()[0], float(self.head.bias.item())


def statistics_of(network: SegmentationNetwork, images: Images, rows: np.ndarray) -> np.ndarray:
    """Logarithms of the statistics of the marks in each crop, float32 (n, K * PER_KIND).

    Args:
        network: moved to the GPU where there is one.
        images: uint8 RGB (N, S, S, 3); S is a multiple of 32.
        rows: indices into ``images``, integers (n,).
    """
    target = device()
    network = network.to(target).eval()
    size = max(1, batch_size(images.shape[1], CPU_CROPS * DECODER) // DECODER)
    parts = (pictures(images, rows[start : start + size]) for start in range(0, len(rows), size))

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return network(batch.to(target)).float().sigmoid().cpu()

    maps = (one.numpy() for part in run_batches(forward, parts) for one in part)
    found = list(read_ahead(statistics, maps))  # counted while the next crop is segmented
    empty = np.empty((0, PER_KIND * len(network.kinds)), np.float32)
    return np.log(np.stack(found) + FLOOR, dtype=np.float32) if found else empty


def statistics(maps: np.ndarray) -> np.ndarray:
    """Statistics of the probabilities (K, S, S) of one crop, float32 (K * PER_KIND,), kind by kind."""
    return np.array([value for one in maps for value in _of_kind(one)], np.float32)


def _of_kind(chance: np.ndarray) -> Iterator[float]:
    """Mean; share, number and largest share of marks by threshold; mean and share by quadrant; ranks."""
    side, pixels = chance.shape[0], chance.size
    yield float(chance.mean())
    for threshold in THRESHOLDS:
        marked = (chance > threshold).astype(np.uint8)
        _, _, found, _ = cv2.connectedComponentsWithStats(marked)
        areas = found[1:, cv2.CC_STAT_AREA] / pixels
        yield float(marked.mean())
        yield float((areas >= SMALLEST).sum())
        yield float(areas.max(initial=0.0))
    half = side // 2
    for rows in (slice(half), slice(half, None)):
        for columns in (slice(half), slice(half, None)):
            quadrant = chance[rows, columns]
            yield float(quadrant.mean())
            yield float((quadrant > THRESHOLDS[1]).mean())
    places = [pixels - max(1, round(share * pixels)) for share in RANKS]
    yield from np.partition(chance, places, axis=None)[places].tolist()

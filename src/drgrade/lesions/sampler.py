"""Sampler of training tiles that oversamples rare lesions.

The kinds are not equally common: most tiles with a lesion show microaneurysms, few show soft exudates.
"""

from collections.abc import Iterator

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from drgrade.rng import numpy_rng


@DATA_SAMPLERS.register_module()
class RareLesionSampler(Sampler[int]):
    """Sample as many tiles per epoch as the dataset has, those with a rare lesion more often than others.

    A tile's weight is the repeat factor of LVIS (Gupta et al., CVPR 2019, section 5.2): for a lesion on the
    fraction f of the tiles, ``max(1, sqrt(threshold / f))``; the largest of a tile's lesions counts, and
    tiles without a lesion have weight 1. Each tile is drawn in proportion to its weight; the fractional part
    of its expected count is rounded up or down at random.

    Args:
        dataset: the tiles.
        seed: random seed; together with the epoch number it determines the order.
        threshold: lesions on less than this fraction of the tiles (0-1) are rare.
    """

    def __init__(self, dataset: CocoDataset, seed: int, threshold: float) -> None:
        self.seed = seed
        self.epoch = 0
        self.weights = repeat_factors([set(dataset.get_cat_ids(i)) for i in range(len(dataset))], threshold)

    def __iter__(self) -> Iterator[int]:
        rng = numpy_rng(self.seed, "tiles", self.epoch)
        order = rng.permutation(len(self))
        # Systematic sampling: equal steps along the cumulative weights.
        ends = np.cumsum(self.weights[order]) / self.weights.sum() * len(self)
        drawn = np.searchsorted(ends[:-1], np.arange(len(self)) + rng.random(), side="right")
        yield from rng.permutation(order[drawn]).tolist()

    def __len__(self) -> int:
        return len(self.weights)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch number; called by MMEngine before each epoch."""
        self.epoch = epoch


def repeat_factors(lesions: list[set[int]], threshold: float) -> np.ndarray:
    """Return the weight (n,), 1 or more, of each of n tiles, as defined in :class:`RareLesionSampler`.

    Args:
        lesions: kinds of lesion on each tile.
        threshold: kinds on less than this fraction of the tiles (0-1) are rare.
    """
    kinds = set().union(*lesions)
    rarity = {
        kind: max(1.0, (threshold * len(lesions) / sum(kind in tile for tile in lesions)) ** 0.5)
        for kind in kinds
    }
    return np.array([max((rarity[kind] for kind in tile), default=1.0) for tile in lesions])

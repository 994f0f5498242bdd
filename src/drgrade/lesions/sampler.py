"""Which tiles an epoch of detector training shows.

The lesions are not equally common: microaneurysms are on most tiles that have a lesion, soft exudates on few.
"""

from collections.abc import Iterator

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from drgrade.rng import numpy_rng


@DATA_SAMPLERS.register_module()
class RareLesionSampler(Sampler[int]):
    """As many tiles an epoch as there are, those with a rare lesion more often, the others less.

    A tile's weight is the repeat factor of LVIS (Gupta et al., CVPR 2019, section 5.2): for a lesion on the
    share f of the tiles, ``max(1, sqrt(threshold / f))``; the largest of the tile's lesions counts, and tiles
    without one weigh 1. Each tile comes up its share of the epoch, rounded up or down by chance.

    Args:
        dataset: the tiles.
        seed: of the draw; another one each epoch.
        threshold: lesions on less than this share of the tiles (0-1) are rare.
    """

    def __init__(self, dataset: CocoDataset, seed: int, threshold: float) -> None:
        self.seed = seed
        self.epoch = 0
        self.weights = repeat_factors([set(dataset.get_cat_ids(i)) for i in range(len(dataset))], threshold)

    def __iter__(self) -> Iterator[int]:
        rng = numpy_rng(self.seed, "tiles", self.epoch)
        order = rng.permutation(len(self))
        # Systematic sampling: equal steps along the weights laid end to end.
        ends = np.cumsum(self.weights[order]) / self.weights.sum() * len(self)
        drawn = np.searchsorted(ends[:-1], np.arange(len(self)) + rng.random(), side="right")
        yield from rng.permutation(order[drawn]).tolist()

    def __len__(self) -> int:
        return len(self.weights)

    def set_epoch(self, epoch: int) -> None:
        """Called by MMEngine before each epoch."""
        self.epoch = epoch


def repeat_factors(lesions: list[set[int]], threshold: float) -> np.ndarray:
    """Weight (n,) of each of n tiles, 1 or more, by the rule of :class:`RareLesionSampler`.

    Args:
        lesions: kinds of lesion on each tile.
        threshold: kinds on less than this share of the tiles (0-1) are rare.
    """
    kinds = set().union(*lesions)
    rarity = {
        kind: max(1.0, (threshold * len(lesions) / sum(kind in tile for tile in lesions)) ** 0.5)
        for kind in kinds
    }
    return np.array([max((rarity[kind] for kind in tile), default=1.0) for tile in lesions])

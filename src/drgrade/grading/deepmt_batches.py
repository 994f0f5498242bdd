"""Training batches of the grader ``deepmt``: graded photographs, each beside one that has drawn lesions."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drgrade.device import exact
from drgrade.grading.base import Job, Photographs
from drgrade.grading.sampling import class_weights
from drgrade.images.augment import Plan, apply, draw, plan, warp
from drgrade.lesions.mask_store import BITS
from drgrade.rng import derive_each, numpy_rng
from drgrade.schema import GRADES
from drgrade.training import Batches, Loader, pictures

if TYPE_CHECKING:
    from drgrade.grading.deepmt import Params


class Images(NamedTuple):
    """Photographs with their augmentation: uint8 (B, 3, S, S)."""

    pictures: Tensor
    changes: Plan


class Sample(NamedTuple):
    """A training batch.

    Attributes:
        graded: graded photographs.
        grades: int64 (B,).
        weights: weight of each grade in the loss (5,), or None.
        drawn: as many photographs with drawn lesions; None in the phase ``grading``.
        masks: their lesions, a bit for each kind, uint8 (B, S, S).
        annotated: which kinds were looked for, a bit for each, uint8 (B,).
    """

    graded: Images
    grades: Tensor
    weights: Tensor | None
    drawn: Images | None = None
    masks: Tensor | None = None
    annotated: Tensor | None = None


def pairs(graded: int, drawn: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, (B, 2): positions of graded photographs, and of ones with drawn lesions.

    Each graded photograph occurs once, as in :class:`.Batches`; the others equally often, give or take one.
    """
    rounds = range(math.ceil(graded / drawn))
    others = np.concatenate([numpy_rng(seed, "drawn", epoch, turn).permutation(drawn) for turn in rounds])
    batches = list(Batches(graded, size, seed, epoch))
    starts = np.cumsum([0, *map(len, batches)])
    return [
        np.stack([batch, others[start : start + len(batch)]], axis=1)
        for start, batch in zip(starts[:-1], batches, strict=True)
    ]


class BatchReader:
    """Reads the batches of a phase and draws their augmentation.

    Args:
        params: params of the experiment.
        job: graded photographs, and photographs with drawn lesions.
        seed: seed of the phase.
    """

    def __init__(self, params: "Params", job: Job, seed: int) -> None:
        assert job.masked is not None
        self.graded, self.drawn = job.train, job.masked
        self.counts = np.bincount(job.train.grades, minlength=len(GRADES))
        self.class_weights, self.augment = params.class_weights, params.augment.model_dump()
        self.seed = seed

    def count(self, size: int) -> int:
        """Number of batches of ``size`` graded photographs in an epoch."""
        return len(Batches(len(self.graded), size, self.seed, 0))

    def loader(self, size: int, epoch: int, *, paired: bool) -> Loader:
        """Batches of one epoch.

        Args:
            size: graded photographs of a batch.
            epoch: counted from 0.
            paired: add a photograph with drawn lesions to each.
        """
        batches: Any = Batches(len(self.graded), size, self.seed, epoch)
        if paired:
            batches = pairs(len(self.graded), len(self.drawn), size, self.seed, epoch)
        return Loader(batches, partial(self.read, epoch=epoch))

    def read(self, items: np.ndarray, epoch: int) -> Sample:
        """Read a batch and draw its augmentation.

        Args:
            items: positions of graded photographs (B,), or :func:`pairs` (B, 2).
            epoch: counted from 0.
        """
        positions = items if items.ndim == 1 else items[:, 0]
        graded = self._images(self.graded, positions, derive_each(positions, self.seed, "graded", epoch))
        weights = class_weights(self.class_weights, self.counts, epoch)
        by_grade = None if weights is None else torch.from_numpy(weights.astype(np.float32))
        sample = Sample(graded, torch.from_numpy(self.graded.grades[positions]), by_grade)
        if items.ndim == 1:
            return sample
        places, masks = items[:, 1], self.drawn.masks
        assert masks is not None
        return sample._replace(
            drawn=self._images(self.drawn, places, derive_each(items, self.seed, "drawn", epoch)),
            masks=torch.from_numpy(masks[places]),
            annotated=torch.from_numpy(masks.annotated[places]),
        )

    def _images(self, photographs: Photographs, positions: np.ndarray, seeds: np.ndarray) -> Images:
        changes = plan(self.augment, draw(self.augment, seeds))
        return Images(pictures(photographs.images, photographs.rows[positions]), changes)


def augmented(*several: Images, size: int) -> Tensor:
    """Augmented images (B, 3, size, size) in 0-1 of one or more groups of photographs."""
    with exact(several[0].pictures.device):
        return torch.cat([apply(one.pictures, one.changes, size).clamp(0, 1) for one in several])


def augmented_masks(batch: Sample, size: int) -> tuple[Tensor, Tensor]:
    """Drawn lesions of a batch, augmented like their photographs.

    Returns:
        Masks (B, 4, size, size), and which kinds were looked for (B, 4); both float32, 0 or 1.
    """
    assert batch.drawn is not None
    assert batch.masks is not None
    assert batch.annotated is not None
    masks = _bits(batch.masks)
    if batch.drawn.changes.moves is not None:
        with exact(masks.device):
            masks = (warp(masks, batch.drawn.changes.moves, size) >= 0.5).float()
    return masks, _bits(batch.annotated)


def _bits(values: Tensor) -> Tensor:
    """Bits of uint8 (B, ...) as float32 (B, 4, ...), one for each kind of lesion."""
    return torch.stack([(values & bit) > 0 for bit in BITS.values()], dim=1).float()

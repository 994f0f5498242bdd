"""Patches of photographs with lesion masks, with the class of lesion each shows, for CLPI's lesion network.

A patch is a window of 64 x 64 pixels at the network's input size. Its class is that of the lesions with the
largest area in it, or normal where no class reaches the least area.

A kind of lesion that nobody looked for in a photograph may be there. So a class counts in the loss only where
it is possible to say whether the patch shows it: normal, the patch's own class, and the classes of which all
kinds were annotated in the photograph. The probabilities of the loss are taken among these.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from drgrade.grading.base import Photographs
from drgrade.images.augment import Plan, draw, plan
from drgrade.images.scaled import at_size
from drgrade.images.statistics import PUBLISHED
from drgrade.lesions.mask_store import BITS
from drgrade.networks.clpi import CELL, CLASSES
from drgrade.rng import derive_each, uniforms

log = logging.getLogger(__name__)

STEP = 16
"""Distance of neighbouring windows in pixels."""
PUBLISHED_SIDE = 1024
"""Input size in pixels that the least area of a lesion refers to."""
TURNS = 8
"""Rotations by right angles, of the patch and of its mirror image."""


class Patches(NamedTuple):
    """A training batch of n patches.

    Attributes:
        images: uint8 (n, 3, 64, 64).
        changes: changes of their colours.
        classes: 0 normal, 1-3 lesions, int64 (n,).
        known: which classes count in the loss, bool (n, 4); the patch's own always does.
    """

    images: Tensor
    changes: Plan
    classes: Tensor
    known: Tensor


def patch_loss(logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy among the classes that count.

    Args:
        logits: float32 (n, 4).
        classes: int64 (n,), each one that counts.
        known: which classes count, bool (n, 4).
    """
    return functional.cross_entropy(logits.masked_fill(~known, -torch.inf), classes)


class LabelledPatches:
    """Draws patches of photographs with lesion masks.

    All is a function of the seed, the epoch and the position in the epoch, so a resumed training continues
    exactly. For each position a photograph is drawn, and several patches of it: all classes that it shows are
    equally likely, whatever their number of windows.

    Args:
        masked: photographs with lesion masks.
        size: side of the network's input in pixels.
        lesions: kinds of lesion of the classes 1-3.
        min_area: least area of a class in a patch, in pixels of an input of 1024 px.
        count: patches per position.
        seed: seed of the training.
        augment: the block ``augment``; its changes of colours apply to patches.
        axes: principal axes of pixel colours.

    Attributes:
        classes: class of each window of each photograph, int8 (photographs, windows); windows in rows.
        known: classes of which all kinds were annotated, and normal; bool (photographs, 4).
    """

    def __init__(
        self,
        masked: Photographs,
        *,
        size: int,
        lesions: Sequence[Sequence[str]],
        min_area: float,
        count: int,
        seed: int,
        augment: Mapping[str, Any],
        axes: npt.ArrayLike = PUBLISHED.axes,
    ) -> None:
        masks = masked.masks
        if masks is None:
            raise ValueError("photographs without masks have no labelled patches")
        self.images, self.rows = at_size(masked.images, size), masked.rows
        self.count, self.seed, self.augment, self.axes = count, seed, augment, axes
        self.starts = np.arange(0, size - CELL + 1, STEP)
        bits = [sum(BITS[kind] for kind in kinds) for kinds in lesions]
        least = min_area * (size / PUBLISHED_SIDE) ** 2
        self.classes = np.stack(
            [window_classes(masks[place], bits, size, self.starts, least) for place in range(len(masks))]
        )
        self.known = np.stack([masks.annotated & bit == bit for bit in [0, *bits]], axis=1)
        names = ["normal", *map("+".join, lesions)]
        shares = np.bincount(self.classes.ravel(), minlength=CLASSES) / self.classes.size
        listed = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))
        log.info("%d photographs with masks; classes of their windows: %s", len(masks), listed)
        for name, share in zip(names, shares, strict=True):
            if not share:
                log.warning("no patch is of the class %s, so patches do not teach it", name)

    def batch(self, positions: npt.NDArray[np.integer], epoch: int) -> Patches:
        """Patches of the positions (b,) of an epoch, ``count`` for each: n = b * count."""
        uniform = uniforms(derive_each(positions, self.seed, "patches", epoch), 1 + 3 * self.count).T
        places = (uniform[:, 0] * len(self.rows)).astype(np.int64)
        drawn = np.concatenate(
            [self._windows(place, row[1:].reshape(-1, 3)) for place, row in zip(places, uniform, strict=True)]
        )
        whole = self.images[self.rows[places]]
        owner = np.repeat(np.arange(len(positions)), self.count)
        corners = self.starts[np.stack(np.divmod(drawn[:, 0], len(self.starts)), axis=1)]
        cut = [
            turned(whole[own, y : y + CELL, x : x + CELL], turn)
            for own, (y, x), turn in zip(owner, corners, drawn[:, 1], strict=True)
        ]
        place = places[owner]
        classes = self.classes[place, drawn[:, 0]].astype(np.int64)
        known = self.known[place].copy()
        known[np.arange(len(known)), classes] = True
        number = np.tile(np.arange(self.count), len(positions))
        seeds = derive_each(np.stack([positions[owner], number], 1), self.seed, "patch colours", epoch)
        colours = plan(self.augment, draw(self.augment, seeds), self.axes)._replace(moves=None)
        stacked = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
        return Patches(stacked, colours, torch.from_numpy(classes), torch.from_numpy(known))

    def _windows(self, place: int, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Windows of one photograph, and their turns: int64 (count, 2).

        Args:
            place: the photograph.
            uniform: random numbers (count, 3) for class, window of the class, and turn.
        """
        windows = [np.flatnonzero(self.classes[place] == one) for one in np.unique(self.classes[place])]
        chosen = [windows[int(value * len(windows))] for value in uniform[:, 0]]
        window = [int(own[int(value * len(own))]) for own, value in zip(chosen, uniform[:, 1], strict=True)]
        return np.stack([window, (uniform[:, 2] * TURNS).astype(np.int64)], axis=1)


def window_classes(
    mask: npt.NDArray[np.uint8],
    bits: Sequence[int],
    size: int,
    starts: npt.NDArray[np.integer],
    least: float,
) -> npt.NDArray[np.int8]:
    """Class of each window of a photograph: 0 normal, else 1 + position in ``bits``.

    Args:
        mask: one bit for each kind of lesion, uint8 (C, C) in crop pixels.
        bits: kinds of each class.
        size: side of the input in pixels, to which the crop is scaled.
        starts: first row, or column, of windows in input pixels, (w,).
        least: least area in input pixels, of the class with the largest area.

    Returns:
        (w * w,), window after window in rows.
    """
    scale = len(mask) / size
    first, last = (np.round(edges * scale).astype(np.int64) for edges in (starts, starts + CELL))
    areas = []
    for bit in bits:
        drawn = (mask & bit > 0).astype(np.uint8)
        total = cv2.integral(drawn)  # pixels above and to the left
        rows = total[last] - total[first]
        areas.append((rows[:, last] - rows[:, first]) / scale**2)
    area = np.stack(areas)
    largest = area.max(axis=0)
    found = np.where((largest > 0) & (largest >= least), 1 + area.argmax(axis=0), 0)
    return found.astype(np.int8).ravel()


def turned(patch: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """A patch (h, h, 3), mirrored if ``turn`` is 4 or more, then rotated ``turn % 4`` times by 90 degrees."""
    return np.rot90(patch[:, ::-1] if turn >= 4 else patch, int(turn) % 4)

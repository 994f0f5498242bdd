"""Losses of lesion segmentation: each kind of lesion is a binary task of its own, as lesions may overlap.

A loss takes logits (B, K, T, T), float32, and targets of the same shape, see :func:`to_targets`. Kinds that
were not annotated in a photograph do not count there.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from segmentation_models_pytorch import losses
from segmentation_models_pytorch.losses.constants import BINARY_MODE, MULTILABEL_MODE
from torch import Tensor

from drgrade.errors import UserError
from drgrade.lesions.mask_store import BITS

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Loss of logits and targets: a scalar."""

UNKNOWN = -1
"""Target of a pixel whose photograph was not annotated for the kind."""
EMPTY = 1.0
"""Pixels added to numerator and denominator of Dice, which make it 1 where no lesion is and none is found."""
MISSES = 0.7
"""Weight of false negatives in the Tversky loss, as published; that of false positives is the rest to 1."""


def to_targets(masks: Tensor, annotated: Tensor, kinds: Sequence[str]) -> Tensor:
    """Targets of the kinds: 1 lesion, 0 none, :data:`UNKNOWN` not annotated; float32 (B, K, T, T).

    Args:
        masks: uint8 (B, T, T), a bit for each kind.
        annotated: bits of the annotated kinds, uint8 (B,).
        kinds: the K kinds.
    """
    bits = torch.tensor([BITS[kind] for kind in kinds], dtype=torch.uint8, device=masks.device)
    present = ((masks[:, None] & bits[:, None, None]) > 0).float()
    known = (annotated[:, None] & bits) > 0
    return present.masked_fill_(~known[:, :, None, None], UNKNOWN)


def dice_squared(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - 2 sum(p s) / (sum(p^2) + sum(s^2)) for each kind over the batch, averaged over the annotated kinds.

    The squares are those of V-Net (Milletari et al., 3DV 2016): a perfect mask gives 0. A deviation: one
    pixel is added to both sums (:data:`EMPTY`), so a kind without lesions in the batch has a finite loss.
    """
    known = (targets != UNKNOWN).float()
    probabilities, present = logits.sigmoid() * known, targets * known
    both = (probabilities * present).sum(dim=(0, 2, 3))
    each = probabilities.square().sum(dim=(0, 2, 3)) + present.square().sum(dim=(0, 2, 3))
    counts = known.amax(dim=(0, 2, 3))
    found: Tensor = (1 - (2 * both + EMPTY) / (each + EMPTY)) * counts
    return found.sum() / counts.sum().clamp(min=1)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the annotated pixels."""
    total: Tensor = losses.SoftBCEWithLogitsLoss(ignore_index=UNKNOWN, reduction="sum")(logits, targets)
    return total / (targets != UNKNOWN).sum().clamp(min=1)


def dice_squared_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of :func:`dice_squared` and :func:`bce`."""
    return dice_squared(logits, targets) + bce(logits, targets)


CRITERIA: Mapping[str, Criterion] = {
    "dice_squared": dice_squared,
    "dice": losses.DiceLoss(MULTILABEL_MODE, ignore_index=UNKNOWN),
    "bce": bce,
    "dice_squared_bce": dice_squared_bce,
    # over all kinds at once: with several kinds this class cannot leave out pixels of one of them
    "focal": losses.FocalLoss(BINARY_MODE, ignore_index=UNKNOWN),
    # with the default weights of 0.5 it would be Dice
    "tversky": losses.TverskyLoss(MULTILABEL_MODE, ignore_index=UNKNOWN, alpha=1 - MISSES, beta=MISSES),
}
"""Losses by the names of ``params.loss``."""


def criterion(name: str) -> Criterion:
    """The loss of a name.

    Raises:
        UserError: there is none.
    """
    if name not in CRITERIA:
        raise UserError(f"segmentation.loss: {name!r} is none of {', '.join(CRITERIA)}; choose one of them")
    return CRITERIA[name]

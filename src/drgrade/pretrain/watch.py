"""What the features are good for so far: the QWK of a k-NN while their encoder is being trained.

It is for looking at only: nothing is chosen by it, and no grade reaches the encoder. A copy is measured, in
evaluation mode and without a random number, so the training goes on as if nobody had looked.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from drgrade.device import device
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.features import Frozen, encode
from drgrade.grading.neighbours import Bank, votes
from drgrade.pretrain.base import Graded
from drgrade.schema import GRADES

K = 15
"""Neighbours that vote, or all where there are fewer (arXiv 2410.00779)."""
TEMPERATURE = 0.07
"""Of the votes (Wu et al., CVPR 2018)."""


class Watch:
    """Measures an encoder after every few epochs.

    Args:
        graded: photographs that vote and that are graded; None: nothing is measured.
        encoder: timm name.
        size: side that whole crops are shown at.
        every: epochs from one measurement to the next; None: nothing is measured.
    """

    def __init__(self, graded: Graded | None, encoder: str, size: int, every: int | None) -> None:
        self.graded, self.encoder, self.size = graded, encoder, size
        self.every = every

    def values(self, encoder: nn.Module, epoch: int) -> dict[str, float]:
        """``val_knn_qwk`` of the encoder as it is, or nothing where it is not this epoch's turn.

        Of several processes each measures all, as none can go on before the others.

        Args:
            encoder: pooled features (B, D) of normalised images (B, 3, size, size).
            epoch: just finished, from 0.
        """
        if self.graded is None or self.every is None or (epoch + 1) % self.every:
            return {}
        return {"val_knn_qwk": knn_qwk(Frozen(self.encoder, encoder, self.size), self.graded)}


def knn_qwk(frozen: Frozen, graded: Graded) -> float:
    """QWK of the votes of training photographs for validation photographs: -1 to 1.

    Not a number where a feature is none.
    """
    known, asked = (encode(frozen, part.images, part.rows) for part in (graded.train, graded.val))
    if not (np.isfinite(known).all() and np.isfinite(asked).all()):
        return float("nan")
    bank = Bank(torch.from_numpy(known), torch.tensor(graded.train.grades)).to(device())
    scores = votes(*bank.nearest(asked, K), TEMPERATURE) @ np.array(GRADES)
    return qwk(graded.val.grades, to_grades(scores))


def unwatched(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's block without what is only for looking: a training resumes whether it is watched or not."""
    return {key: value for key, value in settings.items() if key != "knn_every"}

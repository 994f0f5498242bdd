"""Monitor an encoder during pretraining: the validation QWK of a k-NN on its features.

For monitoring only: nothing is selected by it, and no grade influences the encoder. A copy is evaluated, in
evaluation mode and without random numbers, so the training itself is unaffected.
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
"""Number of neighbours, or all where there are fewer (arXiv 2410.00779)."""
TEMPERATURE = 0.07
"""Temperature of the votes (Wu et al., CVPR 2018)."""


class Watch:
    """Evaluates an encoder after every few epochs.

    Args:
        graded: photographs for training and validating the k-NN; None: nothing is measured.
        encoder: timm name.
        size: side in pixels to which whole crops are resized.
        every: epochs from one measurement to the next; None: nothing is measured.
    """

    def __init__(self, graded: Graded | None, encoder: str, size: int, every: int | None) -> None:
        self.graded, self.encoder, self.size = graded, encoder, size
        self.every = every

    def values(self, encoder: nn.Module, epoch: int) -> dict[str, float]:
        """``val_knn_qwk`` of the encoder, or an empty dict in epochs without a measurement.

        In distributed training all processes must call this, and all get the same value.

        Args:
            encoder: maps normalised images (B, 3, size, size) to pooled features (B, D).
            epoch: number of the finished epoch, from 0.
        """
        if self.graded is None or self.every is None or (epoch + 1) % self.every:
            return {}
        return {"val_knn_qwk": knn_qwk(Frozen(self.encoder, encoder, self.size), self.graded)}


def knn_qwk(frozen: Frozen, graded: Graded) -> float:
    """QWK, from -1 to 1, of the k-NN's predictions for the validation photographs.

    NaN where a feature is not finite.
    """
    known, asked = (encode(frozen, part.images, part.rows) for part in (graded.train, graded.val))
    if not (np.isfinite(known).all() and np.isfinite(asked).all()):
        return float("nan")
    bank = Bank(torch.from_numpy(known), torch.tensor(graded.train.grades)).to(device())
    scores = votes(*bank.nearest(asked, K), TEMPERATURE) @ np.array(GRADES)
    return qwk(graded.val.grades, to_grades(scores))


def unwatched(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's params without those for monitoring, so that changing these does not prevent resuming."""
    return {key: value for key, value in settings.items() if key != "knn_every"}

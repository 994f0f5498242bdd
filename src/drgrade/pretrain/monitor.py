"""Statistics besides a contrastive loss: alignment of pairs, uniformity of samples, rank of the features.

Alignment and uniformity after Wang and Isola, ICML 2020 (arXiv 2005.10242), with their exponents and with
the temperature of the loss; effective rank after Roy and Vetterli, EUSIPCO 2007, of features without
centring, as in RankMe (Garrido et al., ICML 2023). The k-NN evaluation is in
:mod:`drgrade.pretrain.watch`.
"""

from collections import deque
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

SAMPLE = 512
"""Number of most recent features that the rank is computed from; the rank cannot exceed it."""
PAIRS = 8
"""Number of pairs in the saved image of views."""
PHOTOGRAPHS = 4
"""Number of photographs in the saved image of crops."""


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance of the two views of each sample, unit vectors (n, d): 0 (same) to 4."""
    return (first - second).square().sum(1).mean()


def potential(points: Tensor, sharpness: float) -> Tensor:
    """Values exp(-sharpness * squared distance) of all pairs of unit vectors (n, d): (n * (n - 1) / 2,).

    The logarithm of its mean is the uniformity: 0 where all points coincide, lower the more they spread.
    """
    return torch.pdist(points).square().mul(-sharpness).exp()


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the singular values of features (n, d), normalised to sum to 1.

    Roy and Vetterli's definition; as in RankMe, features are not centred. 1 where all features are parallel,
    min(n, d) where all singular values are equal, 0 where all are zero; NaN where a feature is not finite.
    """
    if not bool(features.isfinite().all()):
        return float("nan")
    values = torch.linalg.svdvals(features.double().cpu())
    if not float(values.sum()):
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


class FeatureRank:
    """Effective rank of the last :data:`SAMPLE` features, which stay on their device."""

    def __init__(self) -> None:
        self._batches: deque[Tensor] = deque()

    def see(self, features: Tensor) -> None:
        """Update with a batch of features (n, D)."""
        self._batches.append(features.detach().float())
        while sum(map(len, self._batches)) - len(self._batches[0]) >= SAMPLE:
            self._batches.popleft()

    def value(self) -> float:
        """Effective rank of these features, see :func:`effective_rank`."""
        return effective_rank(torch.cat(list(self._batches))[-SAMPLE:])


class Monitor:
    """Accumulates an epoch's statistics batch by batch, each with the network's weights at that step.

    Args:
        temperature: temperature of the loss.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._begin()

    def _begin(self) -> None:
        self._distances: list[Tensor] = []
        self._potentials: dict[float, list[Tensor]] = {2.0: [], 1 / (2 * self.temperature): []}
        self._rank = FeatureRank()

    @torch.no_grad()
    def see(self, features: Tensor, first: Tensor, second: Tensor) -> None:
        """Update with a batch.

        Args:
            features: encoder features of the first view of each sample, (n, D).
            first: projections of the first views, need not be normalised, (n, d).
            second: projections of the second views, (n, d).
        """
        first, second = normalize(first.float(), dim=1), normalize(second.float(), dim=1)
        self._distances.append(alignment(first, second))
        for sharpness, seen in self._potentials.items():
            seen.append((potential(first, sharpness).mean() + potential(second, sharpness).mean()) / 2)
        self._rank.see(features)

    def values(self) -> dict[str, float]:
        """Return the means over the epoch's batches, and reset.

        - ``alignment``: squared distance of two views (exponent 2).
        - ``uniformity``: log of the mean of exp(-2 * squared distance) over pairs of different samples.
        - ``scaled_alignment`` and ``scaled_uniformity``: the same with the squared distance divided by twice
          the temperature; for NT-Xent on n pairs the loss is about their sum plus log(2n - 1).
        - ``feature_rank``: effective rank of the encoder's features of the last :data:`SAMPLE` samples.
        """
        if not self._distances:
            return {}
        distance = float(torch.stack(self._distances).mean())
        spread = [float(torch.stack(seen).mean().log()) for seen in self._potentials.values()]
        measured = {
            "alignment": distance,
            "uniformity": spread[0],
            "scaled_alignment": distance / (2 * self.temperature),
            "scaled_uniformity": spread[-1],
            "feature_rank": self._rank.value(),
        }
        self._begin()
        return measured


def save_views(views: Tensor, path: Path) -> None:
    """Save an image of the first pairs of views (2n, 3, P, P) in 0-1: first views above, second below."""
    from torchvision.utils import save_image

    pairs = len(views) // 2
    shown = min(pairs, PAIRS)
    save_image(torch.cat([views[:shown], views[pairs : pairs + shown]]).cpu(), path, nrow=shown)


def save_crops(crops: list[Tensor], path: Path) -> None:
    """Save an image of V views of the first photographs, each (n, 3, S, S) in 0-1, one photograph a row.

    Views smaller than the largest are padded with black.
    """
    from torchvision.utils import save_image

    side = max(views.shape[-1] for views in crops)
    framed = []
    for views in crops:
        rest = side - views.shape[-1]
        framed.append(pad(views[:PHOTOGRAPHS].cpu(), (rest // 2, rest - rest // 2) * 2))
    save_image(torch.stack(framed, dim=1).flatten(0, 1), path, nrow=len(crops))

"""Class weights for the loss, and photographs drawn more often the rarer their grade.

All of it is a function of the seed and the epoch, counted from 0, so a resumed training continues exactly.

Sources: Huang et al. (arXiv 2110.14160) for ``class`` and ``progressive``; the second place of the Kaggle
competition on diabetic retinopathy 2015 (team o_O) for ``o_o``. Both count epochs from 1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.params.training import ClassWeights, Sampling
from drgrade.rng import numpy_rng

Floats = NDArray[np.float64]

DECAYS = {"progressive": 0.9, "o_o": 0.975}
"""Published decay per epoch of each strategy."""


def class_weights(kind: ClassWeights, counts: ArrayLike, epoch: int, decay: float = 0.0) -> Floats | None:
    """Weights of the five grades in the loss.

    Args:
        kind: ``balance``: largest count / count; ``dynamic``: the same in the first epoch, then nearer to 1
            in every epoch; ``none``; or the weights themselves.
        counts: training photographs of each grade, (5,). A grade without any has the weight 1.
        epoch: epochs done before, from 0.
        decay: of ``dynamic``, 0-1: factor of the balanced part per epoch. With 0, the published default,
            only the first epoch is balanced.

    Returns:
        (5,), or None for ``none``: all are 1.
    """
    if kind == "none":
        return None
    if not isinstance(kind, str):
        return np.array(kind, np.float64)
    counts = np.asarray(counts, np.float64)
    balance = np.where(counts > 0, _shares(counts.max(), counts), 1.0)
    return balance if kind == "balance" else _between(balance, np.ones_like(balance), decay**epoch)


def sampling_weights(params: Sampling, counts: ArrayLike, epoch: int) -> Floats | None:
    """Relative probability that one photograph of each grade is drawn.

    Args:
        params: the strategy; see there.
        counts: training photographs of each grade, (5,). A grade without any has the weight 0.
        epoch: epochs done before, from 0.

    Returns:
        (5,), or None for ``instance``: each photograph is drawn once.
    """
    if params.strategy == "instance":
        return None
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    if params.strategy == "class":
        return _shares(counts.max(), counts)
    balanced_part = (DECAYS[params.strategy] if params.decay is None else params.decay) ** epoch
    if params.strategy == "progressive":
        return _between(_shares(counts.max(), counts), present.astype(np.float64), balanced_part)
    # the two parts are on different scales: N / count as published, not largest count / count
    return _between(_shares(counts.sum(), counts), present * np.array(params.final_weights), balanced_part)


def order(grades: ArrayLike, weights: ArrayLike | None, seed: int, epoch: int) -> NDArray[np.int64]:
    """Positions of the training photographs in the order of one epoch.

    Args:
        grades: grades 0-4, (n,).
        weights: relative probability of a photograph of each grade, (5,); None: each photograph once, in the
            order of :class:`drgrade.training.Batches`.
        seed: seed of the training.
        epoch: from 0.

    Returns:
        int64 (n,), values 0 to n - 1; with weights some occur several times, others never.
    """
    grades = np.asarray(grades, np.int64)
    if weights is None:
        return numpy_rng(seed, "order", epoch).permutation(len(grades))
    each = np.asarray(weights, np.float64)[grades]
    # a generator of its own: the draws must not depend on the order in which batches take them
    return numpy_rng(seed, "resample", epoch).choice(len(grades), len(grades), p=each / each.sum())


def _shares(total: float, counts: Floats) -> Floats:
    """Total / count; 0 where the count is 0."""
    return np.divide(total, counts, out=np.zeros_like(counts), where=counts > 0)


def _between(first: Floats, last: Floats, part: float) -> Floats:
    """The mixture of ``part`` of the first weights and the rest of the last."""
    return part * first + (1 - part) * last

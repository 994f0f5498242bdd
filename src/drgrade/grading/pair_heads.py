"""Regressors of the grade on inputs (B, W) that join both eyes, and their training.

The blend network is that of o_O (sveitser, Kaggle DR 2015, 2nd place), with its training; the pair head is
that of Huang et al. (Diagnostics 2023, arXiv 2110.14160).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drgrade.grading.pairing import Pairs, Standardise
from drgrade.networks.o_o import maxout
from drgrade.rng import derive, numpy_rng
from drgrade.schema import GRADES
from drgrade.seeding import torch_threads
from drgrade.training import Batches

DROPS = (0.6, 0.8, 0.9)
"""Shares of the epochs after which the blend network's learning rate is divided by 10."""
CHUNK = 1024
"""Photographs that are scored at once: full-size inputs are 8,193 numbers each."""


class MaxoutNetwork(nn.Module):
    """The blend network of o_O: W - 32 ReLU - maxout 16 - 32 ReLU - maxout 16 - 1 linear.

    Input: (B, W). Output: scores (B,), unbounded, about 0-4.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, 32), nn.Linear(16, 32)
        self.last = nn.Linear(16, 1)
        for layer in (self.first, self.second):
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
            nn.init.constant_(layer.bias, 0.01)
        nn.init.xavier_uniform_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B,)."""
        hidden = maxout(self.first(inputs).relu())
        hidden = maxout(self.second(hidden).relu())
        return self.last(hidden).squeeze(1)

    def penalty(self, l1: float, l2: float) -> Tensor:
        """``l1`` times the absolute weights of the first layer, plus ``l2`` times all squared weights.

        Biases do not count.
        """
        squares = sum(layer.weight.square().sum() for layer in (self.first, self.second, self.last))
        return l1 * self.first.weight.abs().sum() + l2 * squares


class MaxoutRecipe(NamedTuple):
    """Training of a :class:`MaxoutNetwork`, by default as published.

    Attributes:
        epochs: passes over the photographs.
        batch_size: photographs a step.
        lr: learning rate of Adam, divided by 10 after each of ``DROPS``.
        balanced: probability of a batch from the class-balanced draw.
        uniform: probability of a batch of uniformly drawn photographs.
        l1: weight of the first layer's absolute weights in the loss.
        l2: weight of all squared weights in the loss.
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 5e-4
    balanced: float = 0.2
    uniform: float = 0.3
    l1: float = 2e-5
    l2: float = 0.005


def blend_batches(grades: np.ndarray, recipe: MaxoutRecipe, rng: np.random.Generator) -> Iterable[np.ndarray]:
    """Batches of one epoch of o_O's blend: positions of photographs, int64 (B,) each.

    Each is, at random, drawn from a sample in which all grades are equally likely, drawn uniformly (both with
    replacement), or the slice of the table that belongs to this step.

    Args:
        grades: 0-4, int64 (n,).
        recipe: batch size and probabilities.
        rng: generator of this epoch.
    """
    count, size = len(grades), recipe.batch_size
    frequency = np.bincount(grades, minlength=len(GRADES))
    chance = 1 / frequency[grades]
    balanced = rng.choice(count, count, p=chance / chance.sum())
    for start in range(0, count, size):
        kind = rng.random()
        if kind < recipe.balanced:
            yield balanced[rng.integers(count, size=size)]
        elif kind < recipe.balanced + recipe.uniform:
            yield rng.integers(count, size=size)
        else:
            yield np.arange(start, min(start + size, count))


def fit_maxout(
    network: MaxoutNetwork, pairs: Pairs, grades: np.ndarray, recipe: MaxoutRecipe, seed: int
) -> None:
    """Train the blend network of o_O, in place.

    Args:
        network: on the device of ``pairs``.
        pairs: n training photographs.
        grades: 0-4, int64 (n,).
        recipe: the training.
        seed: seed of the batches.
    """
    targets = torch.from_numpy(grades.astype(np.float32)).to(pairs.features.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    drops = [round(share * recipe.epochs) for share in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    for epoch in range(recipe.epochs):
        for items in blend_batches(grades, recipe, numpy_rng(seed, "batches", epoch)):
            chosen = torch.from_numpy(items).to(targets.device)
            loss = nn.functional.mse_loss(network(pairs.inputs(chosen)), targets[chosen])
            optimizer.zero_grad()
            (loss + network.penalty(recipe.l1, recipe.l2)).backward()
            optimizer.step()
        schedule.step()


class PairHead(nn.Module):
    """The eye-pair head of Huang et al.: linear layers with maxima over pairs of units and ReLU between.

    For two eyes of 2,048 features each and the published layers it has 8,915,712 parameters.
    Input: (B, W). Output: scores (B,), unbounded, about 0-4.

    Args:
        inputs: W.
        hidden: units of the hidden layers before the maxima, even numbers.
    """

    def __init__(self, inputs: int, hidden: Sequence[int] = (2048, 512)) -> None:
        super().__init__()
        widths = [inputs, *(units // 2 for units in hidden)]
        self.layers = nn.ModuleList(map(nn.Linear, widths, hidden))
        self.last = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B,), also for a batch of one."""
        for layer in self.layers:
            inputs = maxout(layer(inputs)).relu()
        return self.last(inputs).squeeze(1)


class PairRecipe(NamedTuple):
    """Training of a :class:`PairHead` by SGD with Nesterov momentum, by default as published.

    Attributes:
        epochs: passes over the photographs.
        batch_size: photographs a step.
        lr: learning rate, constant.
        momentum: of SGD.
        weight_decay: of all parameters.
        clip: largest norm of the gradient.
    """

    epochs: int = 50
    batch_size: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 1.0


def fit_pair_head(
    head: PairHead,
    inputs: Callable[[int, np.ndarray], Tensor],
    targets: Tensor,
    recipe: PairRecipe,
    seed: int,
    after: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Train a pair head on squared error, in place.

    Args:
        head: on the device of ``targets``.
        inputs: gives, for an epoch and positions of photographs (B,), their inputs (B, W).
        targets: grades, float32 (n,).
        recipe: the training.
        seed: seed of the order of the photographs.
        after: called after each epoch with its number and mean loss.
    """
    optimizer = torch.optim.SGD(
        head.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    for epoch in range(recipe.epochs):
        losses = []
        for items in Batches(len(targets), recipe.batch_size, seed, epoch):
            scores = head(inputs(epoch, items))
            loss = nn.functional.mse_loss(scores, targets[torch.from_numpy(items).to(targets.device)])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), recipe.clip)
            optimizer.step()
            losses.append(loss.detach())
        after(epoch, float(torch.stack(losses).mean()))


class Ridge(nn.Module):
    """A linear regression in double precision.

    Input: (B, W). Output: scores float64 (B,).
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1, dtype=torch.float64)

    def fit(self, inputs: np.ndarray, targets: np.ndarray, alphas: Sequence[float]) -> float:
        """Ridge regression in closed form.

        Args:
            inputs: (n, W).
            targets: (n,).
            alphas: penalties to choose from, by the leave-one-out error.

        Returns:
            The chosen penalty.
        """
        from sklearn.linear_model import RidgeCV

        found = RidgeCV(alphas).fit(inputs.astype(np.float64), targets)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(found.coef_)[None])
            self.linear.bias.fill_(float(found.intercept_))
        return float(found.alpha_)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B,)."""
        return self.linear(inputs.double()).squeeze(1)


class Trees(nn.Module):
    """Gradient-boosted regression trees of LightGBM; it has no tensors, only ``text``.

    Input: (B, W). Output: scores float64 (B,).

    Args:
        text: the trees in LightGBM's text format.
    """

    def __init__(self, text: str) -> None:
        from lightgbm import Booster

        super().__init__()
        self.text = text
        self.booster = Booster(model_str=text)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (B,)."""
        scores = self.booster.predict(inputs.cpu().numpy(), num_threads=torch_threads())
        return torch.from_numpy(np.asarray(scores, np.float64)).to(inputs.device)


class TreesRecipe(NamedTuple):
    """Training of :class:`Trees`, cautious by default, for a few hundred photographs or more.

    Attributes:
        trees: number of trees.
        leaves: leaves of a tree.
        lr: factor of each tree.
        feature_share: share of the inputs that a tree may use.
    """

    trees: int = 300
    leaves: int = 7
    lr: float = 0.05
    feature_share: float = 0.2


def fit_trees(inputs: np.ndarray, targets: np.ndarray, recipe: TreesRecipe, seed: int) -> Trees:
    """Boost regression trees on squared error.

    Args:
        inputs: float32 (n, W).
        targets: (n,).
        recipe: the training.
        seed: seed of the inputs that each tree may use.
    """
    import lightgbm

    settings = {
        "objective": "regression",
        "num_leaves": recipe.leaves,
        "learning_rate": recipe.lr,
        "feature_fraction": recipe.feature_share,
        "lambda_l2": 1.0,
        "min_data_in_leaf": max(1, min(20, len(inputs) // 10)),
        "seed": derive(seed, "trees") % 2**31,
        "deterministic": True,
        "force_row_wise": True,  # otherwise it is chosen by a timing
        "num_threads": torch_threads(),
        "verbosity": -1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(inputs, targets), num_boost_round=recipe.trees)
    return Trees(booster.model_to_string())


class Averaged(nn.Module):
    """The scaler of features, and regressors of paired inputs whose scores are averaged.

    Args:
        scaler: of the features of single photographs.
        heads: regressors of the paired inputs.
    """

    def __init__(self, scaler: Standardise, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.scaler = scaler
        self.heads = nn.ModuleList(heads)

    @torch.inference_mode()
    def scores(self, pairs: Pairs) -> np.ndarray:
        """Mean scores of the heads, float64 (n,), for photographs on the device of the heads."""
        positions = torch.arange(len(pairs), device=pairs.features.device)
        found = [self._chunk(pairs.inputs(items)) for items in positions.split(CHUNK)]
        return torch.cat(found).cpu().numpy()

    def _chunk(self, inputs: Tensor) -> Tensor:
        return torch.stack([head(inputs).double() for head in self.heads]).mean(dim=0)

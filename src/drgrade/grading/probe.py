"""The network of the grader ``linear``: a frozen encoder and one linear unit, trained on features."""

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from drgrade.grading.features import Frozen
from drgrade.grading.losses import regression_head
from drgrade.training import Batches

if TYPE_CHECKING:
    from drgrade.grading.linear import Params


class Probe(nn.Module):
    """Frozen encoder, centring and scaling of its features, and one linear unit.

    Input: normalised images (B, 3, size, size). Output: scores (B,), unbounded, about 0-4.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, encoder: Frozen) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centre", torch.zeros(encoder.width))
        self.register_buffer("scale", torch.ones(()))
        self.head = regression_head(encoder.width)

    def adapt(self, found: np.ndarray) -> None:
        """Compute centre and scale from the training photographs' features (n, D)."""
        deviation = float(np.sqrt(found.var(axis=0, dtype=np.float64).mean()))
        self.centre.copy_(torch.from_numpy(found.mean(axis=0, dtype=np.float64)))
        self.scale.fill_(deviation or 1.0)  # it is 0 for a single photograph

    def scaled(self, found: torch.Tensor) -> torch.Tensor:
        """Features (B, D), centred and scaled for the linear unit."""
        return (found - self.centre) / self.scale

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores (B,)."""
        return self.head(self.scaled(self.encoder(batch))).squeeze(1)


def regress(
    inputs: torch.Tensor, grades: torch.Tensor, head: nn.Linear, params: "Params", seed: int
) -> dict[float, nn.Linear]:
    """Train one copy of ``head`` for each learning rate, side by side.

    The copies share batches but no parameters, so the gradient of the summed loss is that of each copy's own
    loss, and each is trained exactly as it would be alone.

    Args:
        inputs: features (n, D).
        grades: targets, float (n,).
        head: initial weights of all copies.
        params: the experiment's params.
        seed: seed of the order of the photographs.

    Returns:
        The trained heads, by learning rate.
    """
    heads = {lr: copy.deepcopy(head) for lr in params.lr}
    groups = [{"params": one.parameters(), "lr": lr} for lr, one in heads.items()]
    optimizer = torch.optim.Adam(groups, weight_decay=params.weight_decay)
    size, epochs = params.batch_size, params.epochs
    steps = len(Batches(len(inputs), size, seed, 0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)
    for epoch in range(epochs):
        for items in Batches(len(inputs), size, seed, epoch).batches:
            chosen = torch.from_numpy(items).to(inputs.device)
            batch, target = inputs[chosen], grades[chosen]
            losses = [nn.functional.mse_loss(one(batch).squeeze(1), target) for one in heads.values()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return heads

"""Optimisers and learning-rate schedules for fine-tuning.

Schedules multiply each parameter group's own rate, so layer-wise rates keep their ratios. Their state is the
step, which torch's schedulers save in checkpoints; only :class:`Plateau` remembers losses as well.
"""

import math
from functools import partial
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from drgrade.errors import UserError
from drgrade.params.training import Decay, Optimizer, Schedule


def optimizer(
    network: nn.Module,
    *,
    name: Optimizer,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    layer_decay: float | None = None,
    decay: Decay = "all",
) -> torch.optim.Optimizer:
    """An optimiser of a network's parameters.

    Args:
        network: with ``layer_decay`` it has an ``encoder`` of timm.
        name: ``adamw``: decoupled weight decay. ``adam`` and ``sgd``: the decay is an L2 penalty in the
            gradient; Adam needs far smaller values than AdamW (5e-4 at a rate of 1e-3 made a network predict
            grade 0 only). ``sgd`` uses Nesterov momentum.
        lr: peak learning rate; with ``layer_decay``, of the head.
        weight_decay: the gradient of the penalty is ``weight_decay * w``, so a penalty of ``l * w^2`` needs
            ``2 * l``.
        momentum: of ``sgd``.
        layer_decay: factor of the learning rate from each layer to the one below it; see :func:`scales`.
        decay: parameters that decay; see :func:`decays`.

    Raises:
        UserError: ``layer_decay`` with an encoder whose layers timm does not know.
    """
    parameters: Any = network.parameters()
    if layer_decay is not None or decay != "all":
        parameters = _groups(network, lr, weight_decay, layer_decay, decay)
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
        )
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=weight_decay)


def _groups(
    network: nn.Module, lr: float, weight_decay: float, layer_decay: float | None, decay: Decay
) -> list[dict[str, Any]]:
    """Parameters grouped by learning rate and weight decay, in order of first occurrence."""
    scale = {} if layer_decay is None else scales(network, layer_decay)
    decaying = decays(network)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        own_decay = weight_decay if decay == "all" or name in decaying else 0.0
        groups.setdefault((lr * scale.get(name, 1.0), own_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": own_decay}
        for (rate, own_decay), parameters in groups.items()
    ]


def scales(network: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factors of the learning rate of an encoder's parameters, by name, from ``layer_decay``^depth to 1.

    Layers are those of timm's ``param_groups_layer_decay``, after BEiT (arXiv 2106.08254): the head, and
    normalisation directly before it where timm counts it as part of the head, have the factor 1; the
    encoder's last layer has ``layer_decay``, and so on down to the stem.

    Raises:
        UserError: timm does not know the encoder's layers.
    """
    encoder: Any = network.encoder
    if not hasattr(encoder, "group_matcher"):
        raise UserError(f"layer_decay: the layers of {type(encoder).__name__} are unknown; set it to null")
    # a name that no pattern matches stands for the head, which is the last layer
    parameters = [*encoder.named_parameters(), ("(head)", None)]
    layers = group_with_matcher(iter(parameters), encoder.group_matcher(coarse=False), reverse=True)
    head = layers.pop("(head)")
    return {f"encoder.{name}": layer_decay ** (head - layer) for name, layer in layers.items()}


def decays(network: nn.Module) -> set[str]:
    """Names of the weight matrices and kernels: parameters of two or more dimensions, except biases, also
    untied ones of shape (C, H, W), and what timm exempts, such as position embeddings.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    return {
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and "bias" not in name.rpartition(".")[2] and name not in exempt
    }


def schedule(
    optimizer: torch.optim.Optimizer, params: Schedule, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """The scheduler of an optimiser's learning rates, to be stepped after every optimiser step.

    A :class:`Plateau` must be told the training loss after every epoch as well.

    Args:
        optimizer: a new one; its rates are the peak rates.
        params: which schedule.
        steps_per_epoch: optimiser steps per epoch.
        epochs: length of the training.

    Raises:
        UserError: the warm-up or the lowest rate do not fit the training.
    """
    lr = optimizer.defaults["lr"]
    if params.warmup_epochs >= epochs:
        raise UserError(f"schedule.warmup_epochs: must be below epochs, {epochs}; lower it")
    if params.name in ("clipped_cosine", "plateau") and params.min_lr >= lr:
        raise UserError(f"schedule.min_lr: must be below lr, {lr:g}; lower it")
    if params.name == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=steps_per_epoch * epochs)
    if params.name == "plateau":
        return Plateau(optimizer, params, steps_per_epoch)
    factors = partial(factor, params, steps_per_epoch=steps_per_epoch, epochs=epochs, lr=lr)
    return LambdaLR(optimizer, factors)


def factor(params: Schedule, step: int, steps_per_epoch: int, epochs: int, lr: float) -> float:
    """Learning rate of a step as a fraction of the peak rate.

    After the warm-up it is constant within each epoch, as published. Cosines run from the end of the warm-up
    to the end of the training; milestones count all epochs.

    Args:
        params: a schedule other than ``one_cycle`` and ``plateau``, whose rates depend on more than the step.
        step: optimiser steps done before.
        steps_per_epoch: optimiser steps per epoch.
        epochs: length of the training.
        lr: peak rate, which ``min_lr`` is relative to.
    """
    warmup = _warmup(params, step, steps_per_epoch)
    if warmup < 1:
        return warmup
    epoch = step // steps_per_epoch
    since = max(0.0, epoch - params.warmup_epochs)
    cosine = (1 + math.cos(math.pi * since / (epochs - params.warmup_epochs))) / 2
    match params.name:
        case "cosine":
            return cosine
        case "clipped_cosine":
            return max(cosine, params.min_lr / lr)
        case "multi_step":
            return params.gamma ** sum(milestone <= epoch for milestone in params.milestones)
        case "exponential":
            return params.gamma**since
        case "constant":
            return 1.0
    raise ValueError(f"{params.name}: not a function of the step alone")


def _warmup(params: Schedule, step: int, steps_per_epoch: int) -> float:
    """Factor of the warm-up: rises by equal amounts, and is 1 in its last step and from then on."""
    steps = params.warmup_epochs * steps_per_epoch
    return min(1.0, (step + 1) / steps) if steps else 1.0


class Plateau(LRScheduler):
    """Lowers all rates by ``gamma`` when the training loss has not fallen for more than ``patience`` epochs.

    The judgement is that of torch's ReduceLROnPlateau (relative threshold 1e-4). Here a step follows every
    optimiser step, for the warm-up, and :meth:`judge` every epoch. Losses of epochs that began within the
    warm-up do not count, so the rate cannot fall while it still rises.

    Args:
        optimizer: a new one.
        params: ``gamma``, ``patience``, ``min_lr`` and ``warmup_epochs``.
        steps_per_epoch: optimiser steps per epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: Schedule, steps_per_epoch: int) -> None:
        self.params, self.steps_per_epoch = params, steps_per_epoch
        # torch's class lowers the rate of an optimiser; this one's, 1 at first, is the factor of all rates
        self.reduction = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.plateau = ReduceLROnPlateau(
            self.reduction,
            factor=params.gamma,
            patience=params.patience,
            min_lr=params.min_lr / optimizer.defaults["lr"],
            eps=0,
        )
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of the groups for the next step."""
        factor = _warmup(self.params, self.last_epoch, self.steps_per_epoch)
        factor *= self.reduction.param_groups[0]["lr"]
        return [rate * factor for rate in self.base_lrs]

    def judge(self, loss: float) -> None:
        """Lower the rates if the loss of enough epochs has not fallen; call after the steps of each epoch.

        Args:
            loss: the epoch's mean training loss, the same in all processes.
        """
        began = self.last_epoch - self.steps_per_epoch  # torch calls the number of steps last_epoch
        if began < self.params.warmup_epochs * self.steps_per_epoch:
            return
        self.plateau.step(loss)
        self._apply()

    def _apply(self) -> None:
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Step, losses and factor."""
        return {
            "step": self.last_epoch,
            "plateau": self.plateau.state_dict(),
            "reduction": self.reduction.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore step, losses and factor, and the rates that follow."""
        self.last_epoch = state_dict["step"]
        self.plateau.load_state_dict(state_dict["plateau"])
        self.reduction.load_state_dict(state_dict["reduction"])
        self._apply()

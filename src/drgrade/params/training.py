"""Loss, sampling and learning rate of a fine-tuning; keys of the blocks ``grade`` and ``experiments``.

Defaults reproduce mean squared error, each photograph once per epoch, and AdamW in a one-cycle schedule.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drgrade.params.block import Block, Fraction

Positive = Annotated[float, Field(gt=0)]
PerGrade = Annotated[list[Positive], Field(min_length=5, max_length=5)]
"""One positive number for each of the grades 0-4."""

Loss = Literal["mse", "mae", "smooth_l1", "cross_entropy", "soft_qwk", "focal", "coral", "corn"]
"""Names of :data:`drgrade.grading.losses.CRITERIA`."""
ClassWeights = Literal["none", "balance", "dynamic"] | PerGrade
"""Weights of the grades in the loss: see :func:`drgrade.grading.sampling.class_weights`."""
Optimizer = Literal["adamw", "adam", "sgd"]
"""Optimisers: see :func:`drgrade.grading.optimise.optimizer`."""
Decay = Literal["all", "weights"]
"""Parameters that weight decay applies to: all, or weight matrices and kernels only."""


class Sampling(Block):
    """How often photographs of each grade are drawn in an epoch. The epoch's length never changes."""

    strategy: Literal["instance", "class", "progressive", "o_o"] = "instance"
    """instance: each photograph once. The others draw with replacement: class: every grade equally often;
    progressive: at first every grade equally often, later as in the data; o_o: the same, but towards
    ``final_weights``. On EyePACS resampling lowered the QWK (Huang et al., arXiv 2110.14160)."""
    decay: Fraction | None = None
    """Factor per epoch of the balanced part in progressive and o_o. Null: the published 0.9 and 0.975."""
    final_weights: PerGrade = [1.0, 2.0, 2.0, 2.0, 2.0]
    """Relative weights of a photograph of grades 0-4 that o_o approaches."""


class Schedule(Block):
    """Learning rate over the training. Its length always follows ``epochs``."""

    name: Literal[
        "one_cycle", "cosine", "clipped_cosine", "multi_step", "exponential", "plateau", "constant"
    ] = "one_cycle"
    """one_cycle: up, then down to nearly 0, changed at every step, with its own warm-up; the optimiser's
    momentum is cycled too. The others change the rate between epochs: cosine: down to 0; clipped_cosine: to
    ``min_lr``, then constant; multi_step: times ``gamma`` at each milestone; exponential: times ``gamma``
    every epoch; plateau: times ``gamma`` when the training loss stops falling; constant."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs at the start, counted in ``epochs``, in which the rate rises linearly, step by step, to its
    full value. Fractions are allowed."""
    milestones: list[Annotated[int, Field(ge=1)]] = []
    """multi_step: numbers of epochs, increasing, after which the rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of multi_step, exponential (published: 0.6) and plateau."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Lowest rate of clipped_cosine (published: 1e-4) and plateau; with ``layer_decay``, of the head."""
    patience: Annotated[int, Field(ge=0)] = 5
    """plateau: epochs without a lower training loss that are tolerated before the rate falls."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, not {self.milestones}; sort them")
        if self.name == "multi_step" and not self.milestones:
            raise ValueError("multi_step needs milestones; list them, or take constant")
        if self.name == "clipped_cosine" and not self.min_lr:
            raise ValueError("clipped_cosine needs min_lr above 0; set it, or take cosine")
        if self.name == "one_cycle" and self.warmup_epochs:
            raise ValueError("one_cycle has its own warm-up; set warmup_epochs to 0, or take cosine")
        return self

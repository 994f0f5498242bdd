"""Detect collapse of a self-distillation: the teacher's outputs must differ between photographs.

Self-distillation without negatives can die in two ways: the teacher gives every photograph the same
prototype, or gives every photograph all prototypes alike (DINO, section 5.3). Either way the student's task
is solved without looking, and the loss looks as good as any.
"""

import math
from functools import partial

import torch
from torch import Tensor

from drgrade.distributed import mean_over_processes
from drgrade.errors import UserError
from drgrade.pretrain.monitor import FeatureRank

MIN_INFORMATION = 1e-3
"""Least information of a living teacher's distributions, in nats: see :meth:`TeacherMonitor.summary`.

Entropy alone is no sign of death: a dying run swings from one prototype for all to all prototypes alike and
passes every entropy between; the information is low all along. An untrained vision transformer has some
hundredths of a nat and a living run keeps them; a dead one falls below a ten-thousandth within a few epochs
and on towards zero. tests/pretrain/test_local_to_global.py lets one live and one die."""
GRACE = 1
"""Epochs at the start in which a run is not stopped: the centre still follows from zero."""


class TeacherMonitor:
    """Statistics of the teacher's outputs over an epoch, accumulated on the device without synchronisation.

    Spread is taken within batches: a teacher that says one thing to all, but another thing each step, is
    dead all the same.

    Args:
        prototypes: length of the teacher's distributions K.
        features: length of the encoder's features D.
        device: where the batches are.
    """

    def __init__(self, prototypes: int, features: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.use, self.squares = zeros(prototypes), zeros(features)
        self.entropy, self.information = zeros(()), zeros(())
        self.rank = FeatureRank()
        self.samples = 0

    @torch.no_grad()
    def update(self, targets: Tensor, features: Tensor) -> None:
        """Add a batch.

        Args:
            targets: the teacher's distributions (n, K), after centring and sharpening.
            features: the teacher encoder's features (n, D) they come from.
        """
        targets = targets.double()
        own = entropy(targets)
        self.use += targets.sum(dim=0)
        self.entropy += own.sum()
        self.information += (entropy(targets.mean(dim=0)) - own).sum()
        self.squares += features.double().var(dim=0, correction=0) * len(features)
        self.rank.see(features)
        self.samples += len(targets)

    def summary(self) -> dict[str, float]:
        """The epoch in figures, those of all processes together but for the rank, which is this one's.

        Returns:
            ``teacher_entropy``: mean entropy of a distribution, 0 to log K nats.
            ``teacher_kl_uniform``: of the mean distribution from the uniform one; 0 when prototypes are used
            alike, log K when one takes all.
            ``teacher_information``: nats that a distribution tells about which view of the batch was shown:
            entropy of the batch's mean less mean entropy. 0 for both kinds of collapse.
            ``feature_rank``: effective rank of the features seen last, see
            :func:`drgrade.pretrain.monitor.effective_rank`.
            ``feature_sd``: mean over dimensions of the features' standard deviation.
            ``feature_sd_min``: that of the dimension that varies least.
        """
        use, squares, own, information = (
            mean_over_processes(total) / self.samples
            for total in (self.use, self.squares, self.entropy, self.information)
        )
        deviations = squares.sqrt()
        return {
            "teacher_entropy": float(own),
            "teacher_kl_uniform": math.log(len(use)) - float(entropy(use)),
            "teacher_information": float(information),
            "feature_rank": self.rank.value(),
            "feature_sd": float(deviations.mean()),
            "feature_sd_min": float(deviations.min()),
        }


def entropy(distributions: Tensor) -> Tensor:
    """Entropy in nats over the last axis; 0 log 0 is 0."""
    return torch.special.entr(distributions).sum(dim=-1)


def stop_if_collapsed(values: dict[str, float], epoch: int) -> None:
    """Stop a run whose teacher gives the same output for every photograph, see :data:`MIN_INFORMATION`.

    Args:
        values: of :meth:`TeacherMonitor.summary`.
        epoch: that they are of, from 0; the first :data:`GRACE` are let pass unless a figure is not finite.

    Raises:
        UserError: the run is dead; the message says what to change.
    """
    finite = all(math.isfinite(value) for value in values.values())
    if finite and (epoch < GRACE or values["teacher_information"] >= MIN_INFORMATION):
        return
    key = "pretrain.local_to_global"
    if not finite:
        raise UserError(f"{key}: the teacher's output is not finite in epoch {epoch + 1}; lower {key}.lr")
    # which of the two it is: nearer to one prototype, or to all of them alike
    peaked = values["teacher_entropy"] < values["teacher_kl_uniform"]
    kind = "one prototype" if peaked else "all prototypes alike"
    remedy = "raise teacher_momentum towards 1" if peaked else "lower teacher_temperature"
    raise UserError(
        f"{key}: collapsed in epoch {epoch + 1}: the teacher gives every photograph {kind} "
        f"({values['teacher_information']:.1e} nats tell views apart, "
        f"{MIN_INFORMATION:g} are the least); {remedy}, "
        f"lower lr, warm up for longer, or take larger batches or fewer prototypes (out_dim)"
    )

"""Detect collapse of a self-distillation: the teacher's outputs must differ between photographs.

Self-distillation without negatives can collapse in two ways: the teacher assigns every photograph to the same
prototype, or assigns the uniform distribution to every photograph (DINO, section 5.3). In both cases the
student can match it without using the image, and the loss does not reveal the collapse.
"""

import math
from functools import partial

import torch
from torch import Tensor

from drgrade.distributed import mean_over_processes
from drgrade.errors import UserError
from drgrade.pretrain.monitor import FeatureRank

MIN_INFORMATION = 1e-3
"""``teacher_information`` in nats below which a run counts as collapsed: see :meth:`TeacherMonitor.summary`.

Entropy alone does not detect collapse: a collapsing run oscillates between one prototype for all and uniform
distributions and passes every entropy between; the information is low throughout. An untrained vision
transformer has a few hundredths of a nat and a healthy run keeps them; a collapsed one falls below 1e-4
within a few epochs and on towards zero. tests/pretrain/test_local_to_global.py has a run of each kind."""
GRACE = 1
"""Number of first epochs in which a run is not stopped: the centre is still moving away from zero."""


class TeacherMonitor:
    """Statistics of the teacher's outputs over an epoch, accumulated on the device without synchronisation.

    Variation is measured within batches: a teacher whose output is the same for all images of a batch, but
    changes from step to step, has collapsed too.

    Args:
        prototypes: length of the teacher's distributions K.
        features: length of the encoder's features D.
        device: device of the batches.
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
        """Statistics of the epoch over all processes, except the rank, which is that of this process.

        Returns:
            ``teacher_entropy``: mean entropy of a distribution, 0 to log K nats.
            ``teacher_kl_uniform``: KL divergence of the mean distribution from the uniform one; 0 when all
            prototypes are used equally, log K when only one is used.
            ``teacher_information``: mutual information of prototype and view within a batch, in nats:
            entropy of the batch's mean minus mean entropy. 0 for both kinds of collapse.
            ``feature_rank``: effective rank of the most recent features, see
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
        values: result of :meth:`TeacherMonitor.summary`.
        epoch: epoch of the values, from 0; the first :data:`GRACE` only stop if a value is not finite.

    Raises:
        UserError: the run has collapsed; the message says what to change.
    """
    finite = all(math.isfinite(value) for value in values.values())
    if finite and (epoch < GRACE or values["teacher_information"] >= MIN_INFORMATION):
        return
    key = "pretrain.local_to_global"
    if not finite:
        raise UserError(f"{key}: the teacher's output is not finite in epoch {epoch + 1}; lower {key}.lr")
    # which kind of collapse: closer to a single prototype, or to the uniform distribution
    peaked = values["teacher_entropy"] < values["teacher_kl_uniform"]
    kind = "one prototype" if peaked else "all prototypes alike"
    remedy = "raise teacher_momentum towards 1" if peaked else "lower teacher_temperature"
    raise UserError(
        f"{key}: collapsed in epoch {epoch + 1}: the teacher gives every photograph {kind} "
        f"({values['teacher_information']:.1e} nats tell views apart, "
        f"{MIN_INFORMATION:g} are the least); {remedy}, "
        f"lower lr, warm up for longer, or take larger batches or fewer prototypes (out_dim)"
    )

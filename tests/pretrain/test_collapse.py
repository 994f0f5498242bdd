import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.pretrain.collapse import GRACE, MIN_INFORMATION, TeacherMonitor, stop_if_collapsed

CPU = torch.device("cpu")


def summary(*batches, features=None):
    """What a monitor says of batches of distributions, with features beside them."""
    width = 3 if features is None else features[0].shape[1]
    monitor = TeacherMonitor(batches[0].shape[1], width, CPU)
    for number, targets in enumerate(batches):
        monitor.update(targets, torch.zeros(len(targets), 3) if features is None else features[number])
    return monitor.summary()


def one_hot(*prototypes, count=8):
    return torch.eye(count)[list(prototypes)]


@pytest.mark.parametrize(("batches", "entropy", "kl", "information"), [
    ([one_hot(2, 2, 2, 2)], 0, math.log(8), 0),
    ([torch.full((4, 8), 1 / 8)], math.log(8), 0, 0),
    ([one_hot(0, 1, 2, 3)], 0, math.log(8) - math.log(4), math.log(4)),
    ([one_hot(0, 0), one_hot(1, 1)], 0, math.log(8) - math.log(2), 0),  # another answer each step: dead too
    ([one_hot(*range(8)), torch.full((8, 8), 1 / 8)], math.log(8) / 2, 0, math.log(8) / 2),
])  # fmt: skip
def test_what_targets_say(batches, entropy, kl, information):
    values = summary(*batches)
    assert values["teacher_entropy"] == pytest.approx(entropy, abs=1e-7)
    assert values["teacher_kl_uniform"] == pytest.approx(kl, abs=1e-7)
    assert values["teacher_information"] == pytest.approx(information, abs=1e-7)


@given(st.integers(2, 12), st.integers(2, 20), st.floats(0.01, 20), st.integers(0, 99))
def test_information_is_the_mean_divergence_from_the_batch(rows, prototypes, sharpness, seed):
    logits = np.random.default_rng(seed).normal(0, sharpness, (rows, prototypes))
    targets = np.exp(logits - logits.max(axis=1, keepdims=True))
    targets /= targets.sum(axis=1, keepdims=True)
    ratio = np.log(np.maximum(targets, 1e-300) / np.maximum(targets.mean(axis=0), 1e-300))
    expected = (targets * ratio).sum(axis=1).mean()
    found = summary(torch.from_numpy(targets))["teacher_information"]
    assert found == pytest.approx(expected, abs=1e-9)
    assert -1e-9 <= found <= math.log(min(rows, prototypes)) + 1e-9


def test_spread_of_features_is_that_within_batches():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    values = summary(one_hot(*range(6)), one_hot(*range(6)), features=[first + 100, second])
    both = np.concatenate([(part - part.mean(dim=0)).numpy() for part in (first, second)])
    deviations = np.sqrt((both**2).mean(axis=0))
    assert values["feature_sd"] == pytest.approx(deviations.mean())
    assert values["feature_sd_min"] == pytest.approx(deviations.min())


def test_rank_of_features_is_that_of_all_batches_uncentred():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=generator) + 1 for _ in range(2))
    found = summary(one_hot(*range(6)), one_hot(*range(6)), features=[first, second])["feature_rank"]
    shares = np.linalg.svd(torch.cat([first, second]).double().numpy(), compute_uv=False)
    shares /= shares.sum()
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def logits(spread, common=0.0):
    """Targets of 16 views over 64 prototypes from a common part and a part of their own."""
    generator = torch.Generator().manual_seed(1)
    own, shared = torch.randn(16, 64, generator=generator), torch.randn(64, generator=generator)
    return (spread * own + common * shared).softmax(dim=-1)


@pytest.mark.parametrize(("targets", "kind"), [
    (one_hot(3, 3, 3, 3), "one prototype"),
    (torch.full((4, 8), 1 / 8), "all prototypes alike"),
    (logits(1e-3, common=30.0), "one prototype"),
    (logits(1e-2), "all prototypes alike"),
])  # fmt: skip
def test_a_collapsed_teacher_is_stopped_after_the_grace(targets, kind):
    values = summary(targets)
    stop_if_collapsed(values, GRACE - 1)
    with pytest.raises(
        UserError, match=rf"epoch {GRACE + 1}: the teacher gives every photograph {kind}.*lower lr"
    ):
        stop_if_collapsed(values, GRACE)


@pytest.mark.parametrize("targets", [
    logits(0.2), logits(1.0), logits(8.0), logits(0.5, common=3.0), one_hot(0, 1, 2, 3), one_hot(0, 0, 0, 1),
])  # fmt: skip
def test_a_living_teacher_is_not_stopped(targets):
    values = summary(targets)
    assert values["teacher_information"] > MIN_INFORMATION
    stop_if_collapsed(values, 10)


def test_output_that_is_not_finite_stops_at_once():
    with pytest.raises(UserError, match="not finite in epoch 1; lower pretrain"):
        stop_if_collapsed(summary(torch.full((4, 8), math.nan)), 0)

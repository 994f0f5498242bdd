"""Losses against arithmetic in NumPy; kinds that were not annotated, and kinds without a lesion."""

from typing import get_args

import numpy as np
import pytest
import torch

from drgrade.errors import UserError
from drgrade.lesions.mask_store import BITS
from drgrade.params import Segmentation
from drgrade.segmentation.losses import CRITERIA, EMPTY, UNKNOWN, criterion, to_targets

SHAPE = (3, 2, 8, 8)
CERTAIN = 200.0
"""A logit whose probability is exactly 1 in float32, and exactly 0 if it is negative."""


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def targets() -> torch.Tensor:
    """Lesions of both kinds; the second photograph was not annotated for the first kind."""
    drawn = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    drawn[1, 0] = UNKNOWN
    return drawn


def known(values: torch.Tensor, targets: torch.Tensor, kind: int) -> np.ndarray:
    """Values of one kind in the photographs that were annotated for it."""
    return values[:, kind].double().numpy()[(targets[:, kind] != UNKNOWN).numpy()]


def test_the_params_name_the_losses() -> None:
    assert set(CRITERIA) == set(get_args(Segmentation.model_fields["loss"].annotation))
    with pytest.raises(UserError, match=r"^segmentation\.loss: 'hinge' is none of dice_squared, "):
        criterion("hinge")


def test_targets_are_bits_of_the_kinds() -> None:
    masks = torch.tensor([[[1, 9], [8, 0]], [[15, 2], [0, 8]]], dtype=torch.uint8)
    annotated = torch.tensor([BITS["MA"] | BITS["SE"], BITS["SE"]], dtype=torch.uint8)
    found = to_targets(masks, annotated, ["MA", "SE"])
    assert (found.dtype, found.shape) == (torch.float32, (2, 2, 2, 2))
    assert found[0].tolist() == [[[1, 1], [0, 0]], [[0, 1], [1, 0]]]
    assert found[1].tolist() == [[[UNKNOWN] * 2] * 2, [[1, 0], [0, 1]]]


def expected(name: str, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The losses by their definitions, in float64."""
    kinds = []
    for kind in range(SHAPE[1]):
        p, s = 1 / (1 + np.exp(-known(logits, targets, kind))), known(targets, targets, kind)
        right = np.where(s == 1, p, 1 - p)
        kinds.append({
            "dice_squared": 1 - (2 * (p * s).sum() + EMPTY) / ((p**2).sum() + (s**2).sum() + EMPTY),
            "dice": 1 - 2 * (p * s).sum() / (p.sum() + s.sum()),
            "tversky": 1 - (p * s).sum() / (
                (p * s).sum() + 0.3 * (p * (1 - s)).sum() + 0.7 * ((1 - p) * s).sum()
            ),
            "bce": -np.log(right),
            "focal": -((1 - right) ** 2) * np.log(right),
        })  # fmt: skip
    if name in ("bce", "focal"):  # every annotated pixel counts alike
        return float(np.concatenate([values[name] for values in kinds]).mean())
    if name == "dice_squared_bce":
        return expected("dice_squared", logits, targets) + expected("bce", logits, targets)
    return float(np.mean([values[name] for values in kinds]))


@pytest.mark.parametrize("name", CRITERIA)
def test_values(name: str, logits: torch.Tensor, targets: torch.Tensor) -> None:
    assert criterion(name)(logits, targets).item() == pytest.approx(expected(name, logits, targets), rel=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_perfect_mask_has_the_loss_zero_exactly(name: str, targets: torch.Tensor) -> None:
    perfect = torch.where(targets == 1, CERTAIN, -CERTAIN)
    perfect[1, 0] = torch.randn(8, 8)  # unknown
    assert criterion(name)(perfect, targets).item() == 0


@pytest.mark.parametrize("name", CRITERIA)
def test_an_empty_mask_that_is_found_empty_has_the_loss_zero_exactly(name: str) -> None:
    assert criterion(name)(torch.full(SHAPE, -CERTAIN), torch.zeros(SHAPE)).item() == 0


@pytest.mark.parametrize("name", CRITERIA)
def test_what_was_not_annotated_neither_counts_nor_teaches(
    name: str, logits: torch.Tensor, targets: torch.Tensor
) -> None:
    other = logits.clone()
    other[1, 0] = 30 * torch.randn(8, 8)
    other.requires_grad_()
    loss = criterion(name)(other, targets)
    assert loss.item() == pytest.approx(criterion(name)(logits, targets).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, other)
    assert (gradient[1, 0] == 0).all()
    assert (gradient[0, 0] != 0).any()


@pytest.mark.parametrize("name", CRITERIA)
def test_a_kind_without_a_lesion_or_an_annotation_has_a_finite_loss(name: str, logits: torch.Tensor) -> None:
    targets = torch.zeros(SHAPE)
    targets[:, 0, :2] = 1
    for empty in (0.0, UNKNOWN):
        targets[:, 1] = empty
        given = logits.clone().requires_grad_()
        loss = criterion(name)(given, targets)
        (gradient,) = torch.autograd.grad(loss, given)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_kind_that_nobody_annotated_is_left_out_of_the_mean(logits: torch.Tensor) -> None:
    targets = torch.zeros(SHAPE)
    targets[:, 0, :2] = 1
    targets[:, 1] = UNKNOWN
    alone = criterion("dice_squared_bce")(logits[:, :1], targets[:, :1])
    torch.testing.assert_close(criterion("dice_squared_bce")(logits, targets), alone)


def test_misses_cost_more_than_false_alarms_in_the_tversky_loss() -> None:
    targets = torch.zeros(SHAPE)
    targets[..., :4] = 1
    half, double = torch.zeros_like(targets), torch.zeros_like(targets)
    half[..., :2], double[..., :6] = 1, 1
    missed, too_much = (criterion("tversky")((found - 0.5) * CERTAIN, targets) for found in (half, double))
    assert missed > too_much

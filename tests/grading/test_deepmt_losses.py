"""Losses against arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drgrade.grading import deepmt_losses as losses


def test_the_published_loss_of_the_grade():
    """-(|k - l| / sum_i (|i - l| + 1)) log p_l, photograph by photograph; 0 for a correct grade k = l."""
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for grade, denominator in zip(range(5), (15, 12, 11, 12, 15), strict=True):
        for row in logits:
            wrong_by = abs(int(row.argmax()) - grade)
            log_p = float(row[grade] - row.exp().sum().log())
            for name, margin in (("published_distance", 0), ("distance", 1)):
                loss = losses.KINDS[name]().loss(row[None], torch.tensor([grade]))
                assert loss.item() == pytest.approx(-(wrong_by + margin) / denominator * log_p, abs=1e-12)


def test_a_correct_grade_teaches_confidence_unless_as_published():
    logits, grades = torch.tensor([[0.0, 0.1, 0, 0, 0]], requires_grad=True), torch.tensor([1])
    losses.KINDS["published_distance"]().loss(logits, grades).backward()
    assert not logits.grad.any()
    losses.KINDS["distance"]().loss(logits, grades).backward()
    assert logits.grad[0, 1] < 0


def test_class_weights_make_a_weighted_mean():
    logits, grades = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])
    criterion = losses.KINDS["distance"]()
    first, second = (criterion.loss(logits[n : n + 1], grades[n : n + 1]) for n in (0, 1))
    found = criterion.loss(logits, grades, torch.tensor([1.0, 9, 9, 3, 9]))
    torch.testing.assert_close(found, (first + 3 * second) / 4)


def lesions(seed: int = 0) -> Tensor:
    return (torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.2).float()


def test_dice_of_a_perfect_mask_is_no_loss():
    masks, all_kinds = lesions(), torch.ones(2, 4)
    masks[0, 1] = 0  # none of this kind
    assert losses.dice_loss(masks, masks, all_kinds).item() == 0
    assert losses.dice_loss(torch.zeros_like(masks), masks, all_kinds) > 0.8


def test_dice_is_of_each_kind_in_each_image():
    probabilities, masks = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), lesions()
    p, m = probabilities.numpy(), masks.numpy()
    each = [
        1 - (2 * (p[n, k] * m[n, k]).sum() + 1) / (p[n, k].sum() + m[n, k].sum() + 1)
        for n, k in ((0, 0), (0, 2), (1, 3))
    ]
    annotated = torch.zeros(2, 4)
    annotated[[0, 0, 1], [0, 2, 3]] = 1
    found = losses.dice_loss(probabilities, masks, annotated)
    assert found.item() == pytest.approx(np.mean(each), abs=1e-6)
    assert losses.dice_loss(probabilities, masks, torch.zeros(2, 4)).item() == 0


@given(st.integers(1, 20))
def test_a_pixel_of_a_lesion_should_be_certain(pixels):
    """Evaluated for each pixel, as in the published code, the minimum is at a probability of 0.73."""
    masks = torch.zeros(1, 1, 5, 5)
    masks.view(-1)[:pixels] = 1
    chances = torch.linspace(0, 1, 101)
    found = [float(losses.dice_loss(chance * masks, masks, torch.ones(1, 1))) for chance in chances]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_total_variation_and_image_loss():
    images = np.random.default_rng(0).random((2, 3, 5, 6))
    batch = torch.from_numpy(images)
    expected = sum((np.diff(images, axis=axis) ** 2).sum() for axis in (2, 3)) / 2
    assert losses.total_variation(batch).item() == pytest.approx(expected, rel=1e-5)
    assert losses.image_loss(batch + 0.25, batch).item() == pytest.approx(0.25, rel=1e-5)


def test_pseudo_masks_are_of_any_lesion():
    probabilities = torch.tensor([0.5, 0.5, 0.0, 0.2]).view(1, 4, 1, 1)
    found = losses.pseudo_mask_loss(probabilities, torch.ones(1, 1, 1))
    assert found.item() == pytest.approx((0.5 * 0.5 * 0.8) ** 2)


def test_a_soft_threshold_has_a_gradient_and_a_hard_one_has_none():
    evidence = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0], requires_grad=True)
    hard = losses.above(evidence, 0.5, None)
    assert hard.tolist() == [0, 0, 0, 1, 1]
    assert not hard.requires_grad
    soft = losses.above(evidence, 0.5, 0.1)
    np.testing.assert_allclose(soft.tolist(), 1 / (1 + np.exp([5, 1, 0, -1, -5])), rtol=1e-4)
    soft.sum().backward()
    assert (evidence.grad > 0).all()


def test_a_loss_through_images_trains_what_computed_them_alone():
    first, second = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    images = first * torch.ones(2)
    loss = losses.only_through(images, (second * images).square().sum())
    assert loss.item() == 72
    loss.backward()
    assert first.grad == 72  # of 2 * 9 * first^2: 36 * 2
    assert second.grad is None

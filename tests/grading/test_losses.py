"""Losses against independent computations: by hand, in NumPy, from the confusion matrix."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from drgrade.evaluate.metrics import confusion, kappa, qwk
from drgrade.grading.losses import CRITERIA, Focal, criterion
from drgrade.params.training import Loss

NAMES = sorted(CRITERIA)
FIVE = [name for name in NAMES if CRITERIA[name].shape == (5,)]
GRADES = np.array([0, 0, 0, 1, 1, 2, 3, 4, 4])
WEIGHTS = np.array([0.2, 1.0, 3.0, 0.5, 2.0])


def outputs_of(name: str, rows: int = len(GRADES), seed: int = 0) -> torch.Tensor:
    """Random outputs of the shape of a criterion, as its head gives them."""
    rng = np.random.default_rng(seed)
    found = 2 * rng.normal(size=(rows, *CRITERIA[name].shape))
    if name == "coral":
        found = -np.sort(-found, axis=1)
    return torch.tensor(found + (2 if found.ndim == 1 else 0), dtype=torch.float32)


def loss_of(name: str, outputs, grades, weights=None) -> float:
    outputs = torch.as_tensor(outputs, dtype=torch.float32)
    if weights is not None:
        weights = torch.as_tensor(weights, dtype=torch.float32)
    return criterion(name).loss(outputs, torch.as_tensor(grades), weights).item()


def softmax(outputs: np.ndarray) -> np.ndarray:
    powers = np.exp(outputs)
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(outputs: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-outputs))


def each_in_numpy(name: str, outputs: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Loss of each photograph, float64, for losses that are means over photographs."""
    if outputs.ndim == 1:
        error = np.abs(outputs - grades)
        smooth = np.where(error < 1, error**2 / 2, error - 0.5)
        return {"mse": error**2, "mae": error, "smooth_l1": smooth}[name]
    if name == "coral":
        chance, above = sigmoid(outputs), grades[:, None] > np.arange(4)
        return -np.log(np.where(above, chance, 1 - chance)).mean(axis=1)
    true = softmax(outputs)[np.arange(len(grades)), grades]
    return {"cross_entropy": -np.log(true), "focal": -((1 - true) ** 2) * np.log(true)}[name]


def test_every_name_of_the_params_has_a_criterion():
    assert set(CRITERIA) == set(get_args(Loss))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("soft_qwk", "corn")])
def test_a_loss_is_the_weighted_mean_of_the_photographs(name):
    outputs = outputs_of(name)
    each = each_in_numpy(name, outputs.double().numpy(), GRADES)
    assert loss_of(name, outputs, GRADES) == pytest.approx(each.mean(), rel=1e-5)
    expected = np.average(each, weights=WEIGHTS[GRADES])
    assert loss_of(name, outputs, GRADES, WEIGHTS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_class_weights_change_every_loss(name):
    outputs = outputs_of(name)
    plain = loss_of(name, outputs, GRADES)
    assert loss_of(name, outputs, GRADES, np.ones(5)) == pytest.approx(plain, rel=1e-6)
    assert loss_of(name, outputs, GRADES, 7 * np.ones(5)) == pytest.approx(plain, rel=1e-6)
    assert abs(loss_of(name, outputs, GRADES, WEIGHTS) / plain - 1) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_class_weight_of_two_counts_a_photograph_twice(name):
    outputs, twice = outputs_of(name), np.concatenate([np.arange(9), np.flatnonzero(GRADES == 1)])
    expected = loss_of(name, outputs[twice], GRADES[twice])
    assert loss_of(name, outputs, GRADES, [1, 2, 1, 1, 1]) == pytest.approx(expected, rel=1e-5)


def test_squared_error_and_its_gradient_are_torchs_bit_for_bit():
    found, expected = outputs_of("mse", 37).requires_grad_(), outputs_of("mse", 37).requires_grad_()
    grades = torch.arange(37) % 5
    loss = criterion("mse").loss(found, grades)
    reference = functional.mse_loss(expected, grades.float())
    loss.backward()
    reference.backward()
    assert torch.equal(loss, reference)
    assert torch.equal(found.grad, expected.grad)


def test_focal_without_focus_is_cross_entropy(monkeypatch):
    outputs = outputs_of("focal")
    monkeypatch.setattr(Focal, "gamma", 0.0)
    expected = loss_of("cross_entropy", outputs, GRADES, WEIGHTS)
    assert loss_of("focal", outputs, GRADES, WEIGHTS) == pytest.approx(expected, rel=1e-6)


def test_soft_qwk_of_certain_predictions_is_one_minus_qwk():
    rng = np.random.default_rng(1)
    for _ in range(5):
        true, predicted = rng.integers(0, 5, (2, 40))
        logits = 60.0 * np.eye(5)[predicted]
        assert loss_of("soft_qwk", logits, true) == pytest.approx(1 - qwk(true, predicted), abs=1e-5)
        weighted = confusion(true, predicted) * WEIGHTS[:, None]
        expected = 1 - kappa(weighted, "quadratic")
        assert loss_of("soft_qwk", logits, true, WEIGHTS) == pytest.approx(float(expected), abs=1e-5)


def test_soft_qwk_at_its_extremes():
    right = 60.0 * np.eye(5)
    assert loss_of("soft_qwk", right, np.arange(5)) == pytest.approx(0, abs=1e-6)
    reversed_ = right[::-1].copy()
    assert loss_of("soft_qwk", reversed_, np.arange(5)) == pytest.approx(2, abs=1e-5)
    assert loss_of("soft_qwk", np.zeros((5, 5)), np.arange(5)) == pytest.approx(1, abs=1e-6)  # chance level
    assert loss_of("soft_qwk", right[[2, 2]], [2, 2]) < 1e-12  # the expected disagreement is 0 too


def test_soft_qwk_of_uncertain_predictions_by_hand():
    """Half of a healthy eye on grade 4, all of a proliferative one on 4: O = [.5, .5; 0, 1], E = [.5 .. 1.5].

    Disagreement observed: 0.5. Expected: true marginals 1 and 1, predicted 0.5 and 1.5, so (1.5 + 0.5) / 2.
    """
    logits = np.full((2, 5), -60.0)
    logits[0, [0, 4]] = logits[1, 4] = 0
    assert loss_of("soft_qwk", logits, [0, 4]) == pytest.approx(0.5 / 1.0, abs=1e-6)


def test_soft_qwk_is_not_computed_in_half_precision():
    """The trainer's autocast turns matrix products into bfloat16, of three digits."""
    outputs = outputs_of("soft_qwk")
    plain = loss_of("soft_qwk", outputs, GRADES)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of("soft_qwk", outputs, GRADES) == plain


def test_coral_by_hand():
    """Sigmoids of 2, 1, 0, -1 are 0.881, 0.731, 0.5, 0.269."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    by_hand = [[0.1192029, 0.1497384, 0.2310586, 0.2310586, 0.2689414]]
    np.testing.assert_allclose(criterion("coral").probabilities(logits), by_hand, atol=1e-7)
    assert criterion("coral").score(logits).item() == pytest.approx(2.3807971)
    # of grade 2 the answers are yes, yes, no, no: -(ln 0.881 + ln 0.731 + ln 0.5 + ln 0.731) / 4
    assert loss_of("coral", logits, [2]) == pytest.approx(0.3616497)


def test_corn_by_hand():
    """Conditional chances 3/4, 2/3, 1/2, 1/5; above 0, 1, 2, 3: 3/4, 1/2, 1/4, 1/20."""
    logits = torch.log(torch.tensor([[3.0, 2.0, 1.0, 0.25]]))
    above = [3 / 4, 1 / 2, 1 / 4, 1 / 20]
    assert criterion("corn").score(logits).item() == pytest.approx(sum(above))
    expected = [[1 / 4, 1 / 4, 1 / 4, 1 / 5, 1 / 20]]
    np.testing.assert_allclose(criterion("corn").probabilities(logits), expected, atol=1e-7)
    # grade 0 is asked one question, grade 1 two, grade 4 all four, of which none is answered by no
    terms = {0: [1 / 4], 1: [3 / 4, 1 / 3], 4: [3 / 4, 2 / 3, 1 / 2, 1 / 5]}
    for grade, chances in terms.items():
        assert loss_of("corn", logits, [grade]) == pytest.approx(-np.log(chances).mean(), rel=1e-6)
    together = loss_of("corn", logits.repeat(3, 1), [0, 1, 4])
    assert together == pytest.approx(-np.log(np.concatenate(list(terms.values()))).sum() / 7, rel=1e-6)
    weighted = loss_of("corn", logits.repeat(2, 1), [0, 1], [3, 1, 1, 1, 1])
    assert weighted == pytest.approx(-(3 * np.log(1 / 4) + np.log(terms[1]).sum()) / 5, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(name, weighted):
    outputs = outputs_of(name).double().requires_grad_()
    weights = torch.tensor(WEIGHTS) if weighted else None
    grades = torch.tensor(GRADES)
    assert torch.autograd.gradcheck(lambda found: criterion(name).loss(found, grades, weights), outputs)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mse"])
def test_the_score_has_a_gradient_for_heat_maps(name):
    outputs = outputs_of(name).double().requires_grad_()
    assert torch.autograd.gradcheck(criterion(name).score, outputs)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.01, 1.0, 30.0]))
def test_probabilities_are_a_distribution_whose_expectation_is_the_score(name, seed, size):
    outputs = size * outputs_of(name, seed=seed)
    found = criterion(name).probabilities(outputs)
    assert found.dtype == torch.float64
    assert found.shape == (len(GRADES), 5)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(dim=1), 1, atol=1e-12)
    score = criterion(name).score(outputs)
    assert score.shape == (len(GRADES),)
    score = score.clamp(0, 4)  # regressions are not bounded
    np.testing.assert_allclose(found @ torch.arange(5.0).double(), score, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_fits_its_loss_and_learns(name):
    """Features that hold the grade; every loss falls to less than half, and the grades come out right."""
    torch.manual_seed(0)
    grades = torch.tensor(GRADES)
    features = torch.nn.functional.one_hot(grades, 5).float()
    found = criterion(name)
    head = found.new_head(5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)

    def outputs():
        return head(features).squeeze(1) if found.shape == () else head(features)

    assert outputs().shape == (len(GRADES), *found.shape)
    first = found.loss(outputs(), grades).item()
    for _ in range(200):
        optimizer.zero_grad()
        found.loss(outputs(), grades).backward()
        optimizer.step()
    assert found.loss(outputs(), grades).item() < first / 2
    np.testing.assert_array_equal(found.score(outputs()).detach().round(), GRADES)


def test_corals_logits_fall_for_any_weights():
    torch.manual_seed(0)
    head = criterion("coral").new_head(6)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=5)
    assert (head(torch.randn(50, 6)).diff(dim=1) < 0).all()


def test_scores_of_a_new_regression_start_near_grade_one():
    torch.manual_seed(0)
    head = criterion("mse").new_head(1000)
    assert head.bias.item() == 1
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_needs_no_values_on_the_host(name):
    """On the device ``meta`` there are none: reading one, or a shape that depends on one, fails."""
    with torch.device("meta"):
        found = criterion(name)
        outputs = found.new_head(7)(torch.empty(6, 7)).reshape(6, *found.shape)
        grades = torch.empty(6, dtype=torch.int64)
        for weights in (None, torch.empty(5)):
            assert found.loss(outputs, grades, weights).shape == ()
        assert found.score(outputs).shape == (6,)

"""Regressors on both eyes' features: sizes and training against published figures and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from drgrade.grading.pair_heads import (
    Averaged,
    MaxoutNetwork,
    MaxoutRecipe,
    PairHead,
    PairRecipe,
    Ridge,
    TreesRecipe,
    blend_batches,
    fit_maxout,
    fit_pair_head,
    fit_trees,
)
from drgrade.grading.pairing import Pairs, Standardise


def layers(*linear: nn.Linear) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in linear]


def alone(features: np.ndarray) -> Pairs:
    values = torch.from_numpy(features.astype(np.float32))
    return Pairs(values, None, torch.zeros(len(values)))


def test_the_blend_network_is_the_published_one():
    network = MaxoutNetwork(8193)
    sizes = [8193 * 32, 32, 16 * 32, 32, 16, 1]
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(sizes)
    for layer in (network.first, network.second):
        weight = layer.weight.detach()
        short = weight if len(weight) < weight.shape[1] else weight.T
        np.testing.assert_allclose(short @ short.T, 2 * np.eye(len(short)), atol=1e-4)  # gain sqrt 2
        assert (layer.bias == 0.01).all()
    assert network.last.weight.abs().max() <= np.sqrt(6 / 17)  # Glorot: fan in 16, fan out 1
    assert network.last.bias.item() == 0


def test_scores_of_the_blend_network():
    network, inputs = MaxoutNetwork(9), np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    hidden = inputs
    for weight, bias in layers(network.first, network.second):
        hidden = np.maximum(hidden @ weight.T + bias, 0)
        hidden = np.maximum(hidden[:, 0::2], hidden[:, 1::2])
    ((weight, bias),) = layers(network.last)
    expected = hidden @ weight[0] + bias[0]
    np.testing.assert_allclose(network(torch.from_numpy(inputs)).detach(), expected, atol=1e-5)


def test_the_l1_penalty_is_on_the_first_layer_only():
    """A8. The gradient of l2 W^2 is 2 l2 W, that of l1 |W| is l1 sign(W)."""
    network = MaxoutNetwork(9)
    network.penalty(2e-5, 0.005).backward()
    first = network.first.weight.detach()
    assert torch.allclose(network.first.weight.grad, 2e-5 * first.sign() + 0.01 * first)
    for layer in (network.second, network.last):
        assert torch.allclose(layer.weight.grad, 0.01 * layer.weight.detach())
    assert all(layer.bias.grad is None for layer in (network.first, network.second, network.last))


class Constant(nn.Module):
    """A score that is the same for all photographs, and a penalty that pulls it up by ``l1``."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.value.expand(len(inputs))

    def penalty(self, l1, l2):
        return -l1 * self.value + l2 * self.value**2


def test_the_learning_rate_falls_at_the_published_epochs():
    """Adam moves a parameter by the learning rate at each step while the gradient stays the same."""
    network = Constant()
    recipe = MaxoutRecipe(l1=1e6, l2=0)
    fit_maxout(network, alone(np.zeros((256, 1))), np.zeros(256, np.int64), recipe, 0)  # two steps an epoch
    rates = [5e-4] * 60 + [5e-5] * 20 + [5e-6] * 10 + [5e-7] * 10
    assert network.value.item() == pytest.approx(2 * sum(rates), rel=1e-4)
    shorter = Constant()
    fit_maxout(shorter, alone(np.zeros((256, 1))), np.zeros(256, np.int64), recipe._replace(epochs=10), 0)
    assert shorter.value.item() == pytest.approx(network.value.item() / 10, rel=1e-3)


def test_the_penalty_is_part_of_the_training_loss():
    """All grades are 2: the optimum of (v - 2)^2 + l2 v^2 - l1 v is (4 + l1) / (2 + 2 l2)."""
    network = Constant()
    recipe = MaxoutRecipe(epochs=400, lr=0.05, l1=1.0, l2=0.5)
    fit_maxout(network, alone(np.zeros((4, 1))), np.full(4, 2), recipe, 0)
    assert network.value.item() == pytest.approx(5 / 3, abs=1e-3)


GRADES = np.repeat([0, 1, 2, 3, 4], [80, 10, 6, 3, 1])


def drawn(seed: int = 0, epochs: int = 100, **changed) -> list[np.ndarray]:
    recipe = MaxoutRecipe(**{"batch_size": 8} | changed)
    rngs = [np.random.default_rng([seed, epoch]) for epoch in range(epochs)]
    return [batch for rng in rngs for batch in blend_batches(GRADES, recipe, rng)]


def shares(batches: list[np.ndarray]) -> np.ndarray:
    grades = GRADES[np.concatenate(batches)]
    return np.bincount(grades, minlength=5) / len(grades)


def test_slices_follow_the_table():
    batches = drawn(epochs=1, balanced=0, uniform=0)
    assert [batch.tolist() for batch in batches] == [
        list(range(start, min(start + 8, 100))) for start in range(0, 100, 8)
    ]


def test_balanced_and_uniform_batches():
    np.testing.assert_allclose(shares(drawn(balanced=1, uniform=0)), 0.2, atol=0.03)
    natural = drawn(balanced=0, uniform=1)
    np.testing.assert_allclose(shares(natural), [0.8, 0.1, 0.06, 0.03, 0.01], atol=0.01)
    assert all(len(batch) == 8 for batch in natural)
    assert len(set(np.concatenate(natural[:13]).tolist())) < 100  # with replacement


def test_balanced_batches_of_an_epoch_share_one_draw():
    """Some 20 of its 100 draws are of grade 0, so most of the 80 such photographs are not among them."""
    batches = drawn(epochs=1, balanced=1, uniform=0, batch_size=1000)
    assert len(batches) == 1
    of_none = np.unique(batches[0][GRADES[batches[0]] == 0])
    assert 5 < len(of_none) < 40


def test_shares_of_the_three_kinds():
    """0.2 balanced, 0.3 uniform, 0.5 slices: only these are consecutive, and grade 4 tells the others."""
    batches = drawn(epochs=200, batch_size=8)
    slices = [batch for batch in batches if (np.diff(batch) == 1).all() and batch[0] % 8 == 0]
    assert len(slices) / len(batches) == pytest.approx(0.5, abs=0.03)
    others = [batch for batch in batches if len(batch) == 8 and not (np.diff(batch) == 1).all()]
    expected = (0.2 * 0.2 + 0.3 * 0.01) / 0.5  # share of grade 4 in them
    assert shares(others)[4] == pytest.approx(expected, abs=0.015)


def test_a_grade_that_does_not_occur_is_not_drawn():
    recipe = MaxoutRecipe(batch_size=50, balanced=1, uniform=0)
    (batch,) = blend_batches(np.array([0, 0, 0, 4]), recipe, np.random.default_rng(0))
    assert set(batch.tolist()) <= {0, 1, 2, 3}


def test_the_blend_network_learns():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 4))
    grades = np.clip(np.round(2 + 1.2 * np.abs(features[:, 0]) - features[:, 1]), 0, 4).astype(np.int64)
    torch.manual_seed(0)
    network = MaxoutNetwork(4)
    fit_maxout(network, alone(features), grades, MaxoutRecipe(epochs=40, lr=0.01, batch_size=32), 0)
    error = np.mean((network(alone(features).features).detach().numpy() - grades) ** 2)
    assert error < 0.35 * grades.var()


def test_the_pair_head_is_the_published_one():
    head = PairHead(2 * 2048)
    assert sum(parameter.numel() for parameter in head.parameters()) == 8_915_712
    assert head.last.bias is None
    assert [layer.out_features for layer in head.layers] == [2048, 512]


def test_scores_of_the_pair_head():
    head, inputs = PairHead(6, [8, 4]), np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    hidden = inputs
    for weight, bias in layers(*head.layers):
        hidden = hidden @ weight.T + bias
        hidden = np.maximum(np.maximum(hidden[:, 0::2], hidden[:, 1::2]), 0)
    expected = hidden @ head.last.weight.detach().numpy()[0]
    found = head(torch.from_numpy(inputs))
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)
    one = head(torch.from_numpy(inputs[:1]))  # defect F4: a batch of one
    assert one.shape == (1,)
    np.testing.assert_allclose(one.detach(), expected[:1], atol=1e-6)


def test_steps_of_the_pair_head_are_clipped():
    """A first step with Nesterov momentum 0.9 is 1.9 times learning rate and gradient, here of norm 1."""
    head = PairHead(3, [4])
    before = nn.utils.parameters_to_vector(head.parameters()).detach()
    far = torch.full((2,), 1e6)
    recipe = PairRecipe(epochs=1, weight_decay=0)
    fit_pair_head(head, lambda epoch, items: torch.ones(len(items), 3), far, recipe, 0)
    step = nn.utils.parameters_to_vector(head.parameters()).detach() - before
    assert step.norm().item() == pytest.approx(1.9 * 0.02, rel=1e-4)


def test_weight_decay_of_the_pair_head():
    """Scores are at their targets, so only the decay moves weights: by 1.9 lr * decay * w in a first step."""
    head = PairHead(3, [4])
    inputs = torch.ones(2, 3)
    before = nn.utils.parameters_to_vector(head.parameters()).detach()
    recipe = PairRecipe(epochs=1, lr=0.1, weight_decay=0.5)
    fit_pair_head(head, lambda epoch, items: inputs[items], head(inputs).detach(), recipe, 0)
    after = nn.utils.parameters_to_vector(head.parameters()).detach()
    assert torch.allclose(after, before * (1 - 1.9 * 0.1 * 0.5), atol=1e-6)


def test_the_pair_head_reports_each_epoch():
    seen = []
    recipe = PairRecipe(epochs=3, batch_size=2)
    head = PairHead(3, [4])

    def inputs(epoch, items):
        seen.append((epoch, sorted(items.tolist())))
        return torch.zeros(len(items), 3)

    losses = []
    fit_pair_head(
        head, inputs, torch.tensor([1.0, 1.0, 1.0, 1.0]), recipe, 0, lambda *one: losses.append(one)
    )
    assert [epoch for epoch, _ in losses] == [0, 1, 2]
    assert losses[-1][1] < losses[0][1] <= (1 + 0.1) ** 2 * 2
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1, 2, 2]
    assert sorted(seen[0][1] + seen[1][1]) == [0, 1, 2, 3]


def test_ridge_is_the_closed_form_with_the_smallest_leave_one_out_error():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 12)).astype(np.float32)
    targets = inputs[:, 0] - inputs[:, 1] + 2 + 0.7 * rng.normal(size=30)
    alphas = [0.1, 1.0, 10.0, 100.0]

    def solved(rows, alpha):
        """The intercept is not penalised."""
        design = np.column_stack([inputs[rows].astype(np.float64), np.ones(len(rows))])
        return np.linalg.solve(
            design.T @ design + alpha * np.diag([1.0] * 12 + [0.0]), design.T @ targets[rows]
        )

    def error(alpha):
        left_out = [np.delete(np.arange(30), one) for one in range(30)]
        return sum(
            (np.append(inputs[n], 1) @ solved(rows, alpha) - targets[n]) ** 2
            for n, rows in enumerate(left_out)
        )

    ridge = Ridge(12)
    best = min(alphas, key=error)
    assert ridge.fit(inputs, targets, alphas) == best
    expected = np.column_stack([inputs, np.ones(30)]) @ solved(np.arange(30), best)
    found = ridge(torch.from_numpy(inputs))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.detach(), expected, atol=1e-9)


def test_more_inputs_than_photographs():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(10, 40)), rng.normal(size=10)
    ridge = Ridge(40)
    ridge.fit(inputs, targets, [10.0])
    centred = inputs - inputs.mean(axis=0)
    weights = centred.T @ np.linalg.solve(centred @ centred.T + 10 * np.eye(10), targets - targets.mean())
    np.testing.assert_allclose(ridge.linear.weight.detach()[0], weights, atol=1e-10)


def test_trees():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5)).astype(np.float32)
    targets = (inputs[:, 2] > 0).astype(np.float64) * 3
    trees = fit_trees(inputs, targets, TreesRecipe(trees=100, feature_share=1.0, lr=0.1), 0)
    shown = torch.from_numpy(inputs)
    np.testing.assert_allclose(trees(shown), targets, atol=0.1)
    again = fit_trees(inputs, targets, TreesRecipe(trees=100, feature_share=1.0, lr=0.1), 0)
    assert again.text == trees.text
    assert list(trees.state_dict()) == []


def test_the_seed_selects_the_inputs_of_each_tree():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(60, 10)), rng.normal(size=60)
    texts = {fit_trees(inputs, targets, TreesRecipe(trees=3), seed).text for seed in (0, 1)}
    assert len(texts) == 2


def test_scores_of_several_heads_are_averaged():
    """More photographs than are scored at once."""
    heads = [MaxoutNetwork(2), MaxoutNetwork(2), Ridge(2)]
    pairs = alone(np.random.default_rng(0).normal(size=(1500, 2)))
    found = Averaged(Standardise(2), heads).scores(pairs)
    expected = np.mean([head(pairs.features).detach().double().numpy() for head in heads], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)

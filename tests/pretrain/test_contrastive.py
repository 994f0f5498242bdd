import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch import nn

from drgrade.errors import UserError
from drgrade.params import SimCLR
from drgrade.pretrain.contrastive import Batch, Contrast, Projector, SupCon, optimiser, projector, schedule
from drgrade.pretrain.views import Pairs as Views


class Pairs(Contrast):
    """Nothing to look at."""

    def samples(self, epoch):
        return np.arange(4)

    def pairs(self, samples, epoch):
        raise NotImplementedError


class Encoder(nn.Linear):
    num_features = 4

    def __init__(self):
        super().__init__(4, 4)


def block(**changes):
    return SimCLR(encoder="test_efficientnet", start="random", **changes).model_dump()


def random_views(samples, values, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, samples, values, dtype=torch.float64, generator=generator)


def by_hand(first, second, temperature, kinds):
    """Equation 2 of Khosla et al. one pair at a time: -1/|P| sum_p log softmax, mean over anchors."""
    views = [row / np.linalg.norm(row) for row in (*first.numpy(), *second.numpy())]
    kinds = [*kinds, *kinds]
    losses = []
    for anchor, view in enumerate(views):
        others = [other for other in range(len(views)) if other != anchor]
        every = math.log(sum(math.exp(view @ views[other] / temperature) for other in others))
        positives = [other for other in others if kinds[other] == kinds[anchor]]
        losses.append(np.mean([every - view @ views[other] / temperature for other in positives]))
    return np.mean(losses)


@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.05, 1), st.integers(0, 99))
def test_the_loss_is_nt_xent_by_brute_force(samples, values, temperature, seed):
    first, second = random_views(samples, values, seed)
    expected = by_hand(first, second, temperature, range(samples))
    assert float(SupCon(temperature)(first, second)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.floats(0.05, 1), st.integers(0, 99))
def test_supcon_is_that_of_the_paper_by_brute_force(kinds, temperature, seed):
    first, second = random_views(len(kinds), 4, seed)
    loss = SupCon(temperature)(first, second, torch.tensor(kinds))
    expected = by_hand(first, second, temperature, kinds)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_supcon_of_things_of_a_kind_of_their_own_is_nt_xent():
    first, second = random_views(6, 8, 0)
    first.requires_grad_()
    ours = SupCon(0.07)(first, second)
    assert torch.equal(ours, SupCon(0.07)(first, second, torch.tensor([5, 3, 4, 0, 9, 1])))
    theirs = NTXentLoss(0.07)(first, second)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, first)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_supcon_of_two_processes_is_that_of_one_on_the_joined_batch(monkeypatch):
    """What the processes exchange is played: each holds half of the samples."""
    first, second = random_views(6, 8, 1)
    kinds = torch.tensor([0, 1, 0, 2, 0, 1])
    halves = [slice(0, 3), slice(3, 6)]
    views = [nn.functional.normalize(torch.cat([first[half], second[half]]), dim=1) for half in halves]
    labels = [kinds[half].repeat(2) for half in halves]
    monkeypatch.setattr("lightly.utils.dist.world_size", lambda: 2)
    monkeypatch.setattr("lightly.utils.dist.gather", lambda own: views if own.ndim == 2 else labels)
    losses = []
    for rank, half in enumerate(halves):
        monkeypatch.setattr("lightly.utils.dist.rank", lambda rank=rank: rank)
        losses.append(float(SupCon(0.1)(first[half], second[half], kinds[half])))
    monkeypatch.undo()
    assert np.mean(losses) == pytest.approx(float(SupCon(0.1)(first, second, kinds)), abs=1e-9)


@given(st.integers(1, 200), st.floats(0, 0.99))
def test_the_schedule_rises_to_its_peak_and_is_zero_after_the_last_step(steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    plan = schedule(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    rising = round(warmup * steps)
    assert rates[:rising] == pytest.approx([0.5 * (step + 1) / rising for step in range(rising)])
    falling = steps - rising
    cosine = [0.25 * (1 + math.cos(math.pi * step / falling)) for step in range(falling)]
    assert rates[rising:] == pytest.approx(cosine)
    assert optimizer.param_groups[0]["lr"] == 0


def test_the_loss_is_taken_in_full_precision():
    module = Pairs(projector(block()), block())
    projections = []
    module.network.register_forward_hook(lambda network, given, found: projections.append(found[1]))
    views = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(Batch(Views(views, None), None), 1)
    assert projections[0].dtype == torch.bfloat16
    assert torch.equal(loss, SupCon(0.07)(*projections[0].float().chunk(2)))


def stepped(network, params, steps=3):
    """Weights after some steps on fixed gradients."""
    generator = torch.Generator().manual_seed(0)
    chosen = optimiser(network, params) if isinstance(params, dict) else params
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        chosen.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_sgd_is_as_published():
    network = small()
    plain = torch.optim.SGD(network.parameters(), 0.02, 0.9, weight_decay=5e-4, nesterov=True)
    expected = stepped(network, plain)
    found = stepped(small(), block())
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_lars_scales_the_steps_of_weights_but_not_of_biases():
    network = small()
    weight, bias = (parameter.detach().clone() for parameter in network[0].parameters())
    after = stepped(network, block(optimiser="lars", lr=0.1, weight_decay=0.01), steps=1)
    gradient, plain = network[0].weight.grad, network[0].bias.grad
    trust = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
    # the first step of Nesterov momentum 0.9 is 1.9 times the gradient
    assert torch.allclose(after[0], weight - 0.1 * 1.9 * trust * (gradient + 0.01 * weight))
    assert torch.allclose(after[1], bias - 0.1 * 1.9 * plain)


def test_adamw_decays_weights_only():
    network = small()
    weight, bias = (parameter.detach().clone() for parameter in network[0].parameters())
    after = stepped(network, block(optimiser="adamw", lr=0.1, weight_decay=0.5), steps=1)
    # Adam's first step is the sign of the gradient
    step = torch.sign(network[0].weight.grad)
    assert torch.allclose(after[0], 0.95 * weight - 0.1 * step, atol=1e-5)
    assert torch.allclose(after[1], bias - 0.1 * torch.sign(network[0].bias.grad), atol=1e-5)


@pytest.mark.parametrize(("head", "layers"), [("linear", [256]), ("mlp", [256, 256])])
def test_heads_project_features_to_128_values(head, layers):
    network = projector(block(head=head)).eval()
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == layers
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, projections = network(batch)
        assert torch.equal(features, network.encoder(batch))
        assert torch.equal(projections, network.head(features))
    assert projections.shape == (2, 128)


def test_heads_are_the_same_for_the_same_seed():
    weights = [projector(block(seed=seed)).head[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_vision_transformers_take_views_of_other_sizes():
    network = projector(block() | {"encoder": "test_vit"})
    assert network(torch.zeros(2, 3, 64, 64))[0].shape == (2, 64)
    with pytest.raises(UserError, match=r"^encoder 'test_maxvit': takes images of one size only"):
        projector(block() | {"encoder": "test_maxvit"})


def test_seeds_belong_to_what_is_seen():
    module = Pairs(Projector(Encoder()), block())
    seeds = module.seeds(np.array([[3, 0], [3, 1], [4, 0]]), 5)
    assert len(np.unique(seeds)) == 6
    assert (module.seeds(np.array([[4, 0]]), 5) == seeds[2:]).all()
    assert (module.seeds(np.array([[4, 0]]), 6) != seeds[2:]).all()
    assert (Pairs(Projector(Encoder()), block(seed=2)).seeds(np.array([[4, 0]]), 5) != seeds[2:]).all()

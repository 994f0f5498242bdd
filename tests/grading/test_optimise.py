"""Schedules against torch's own and the published ones; layer-wise rates against timm's."""

import math

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import lr_scheduler

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.grading.optimise import Plateau, decays, factor, optimizer, scales, schedule
from drgrade.params.training import Schedule

ENCODERS = ["test_vit", "test_efficientnet", "test_convnext", "test_resnet"]


class Graded(nn.Module):
    """An encoder and a linear head."""

    def __init__(self, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(features, 1)


def graded(name: str) -> Graded:
    encoder = create_encoder(name, "random")
    return Graded(encoder, encoder.num_features)


def small(**changed) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    settings = {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0} | changed
    return optimizer(nn.Linear(3, 1), **settings)


def rates(params: Schedule, epochs: int, steps: int = 1, lr: float = 1e-3) -> np.ndarray:
    """Rates of all steps of a training, (epochs, steps)."""
    found, one = [], small(lr=lr)
    scheduler = schedule(one, params, steps, epochs)
    for _ in range(epochs * steps):
        found.append(one.param_groups[0]["lr"])
        one.step()
        scheduler.step()
    return np.reshape(found, (epochs, steps))


def per_epoch(new, epochs: int, lr: float = 1e-3) -> list[float]:
    """Rates of a scheduler of torch that is stepped after each epoch."""
    one, found = torch.optim.SGD([torch.zeros(1)], lr=lr), []
    scheduler = new(one)
    for _ in range(epochs):
        found.append(one.param_groups[0]["lr"])
        one.step()
        scheduler.step()
    return found


def trained(one: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    parameters = one.param_groups[0]["params"]
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
        one.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("adamw", lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)),
        ("adam", lambda parameters: torch.optim.Adam(parameters, lr=1e-3, weight_decay=0.1)),
        (
            "sgd",
            lambda parameters: torch.optim.SGD(
                parameters, 1e-3, momentum=0.9, nesterov=True, weight_decay=0.1
            ),
        ),
    ],
)
def test_an_optimizer_is_torchs_bit_for_bit(name, new):
    found = small(name=name, weight_decay=0.1)
    torch.manual_seed(0)
    expected = new(nn.Linear(3, 1).parameters())
    assert type(found) is type(expected)
    assert all(map(torch.equal, trained(found), trained(expected)))
    assert found.state_dict()["param_groups"] == expected.state_dict()["param_groups"]


def test_sgd_without_momentum():
    assert not small(momentum=0.0).param_groups[0]["nesterov"]  # torch would refuse it


@pytest.mark.parametrize("name", ENCODERS)
def test_layer_rates_are_timms_for_the_whole_network(name):
    whole = timm.create_model(name, num_classes=5)
    groups = param_groups_layer_decay(whole, layer_decay=0.7)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {key: scale[id(value)] for key, value in whole.named_parameters()}
    network = graded(name)
    names = [key for key, _ in network.encoder.named_parameters()]
    assert scales(network, 0.7) == pytest.approx({f"encoder.{key}": expected[key] for key in names})


def test_layer_rates_fall_from_the_head_to_the_stem():
    network = graded("test_vit")
    groups = optimizer(network, name="adamw", lr=0.1, weight_decay=0.01, layer_decay=0.5).param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(network.parameters()))
    named = {name: rate[id(parameter)] for name, parameter in network.named_parameters()}
    assert named["head.weight"] == named["head.bias"] == 0.1
    blocks = [named[f"encoder.blocks.{block}.mlp.fc1.weight"] for block in range(len(network.encoder.blocks))]
    assert blocks == [0.1 * 0.5 ** (len(blocks) - block) for block in range(len(blocks))]
    assert named["encoder.patch_embed.proj.weight"] == named["encoder.pos_embed"] == blocks[0] / 2
    assert {group["weight_decay"] for group in groups} == {0.01}


def test_an_encoder_of_unknown_layers_has_no_layer_decay():
    network = Graded(nn.Linear(3, 2), 2)
    with pytest.raises(UserError, match=r"^layer_decay: the layers of Linear are unknown; set it to null$"):
        optimizer(network, name="sgd", lr=0.1, weight_decay=0, layer_decay=0.7)


class Untied(nn.Module):
    """A convolution with a bias for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bias = nn.Parameter(torch.zeros(4, 5, 5))
        self.norm = nn.BatchNorm2d(4)


def test_only_weight_matrices_decay():
    assert decays(Graded(Untied(), 4)) == {"encoder.conv.weight", "head.weight"}
    network = graded("test_vit")
    kernels = {f"{key}.weight" for key, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert decays(network) == kernels | {"encoder.patch_embed.proj.weight"}  # no positions, no class token


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_what_does_not_decay_keeps_its_value(layer_decay):
    """Without a gradient decoupled decay is all that changes a parameter."""
    torch.manual_seed(0)
    network = graded("test_vit")
    one = optimizer(network, name="adamw", lr=0.1, weight_decay=0.5, layer_decay=layer_decay, decay="weights")
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one.step()
    scale = {} if layer_decay is None else scales(network, layer_decay)
    for name, parameter in network.named_parameters():
        left = 1 - 0.1 * 0.5 * scale.get(name, 1) if name in decays(network) else 1
        torch.testing.assert_close(parameter.detach(), left * before[name])


def test_one_cycle_is_torchs_bit_for_bit():
    found, expected = small(name="adamw"), torch.optim.AdamW(nn.Linear(3, 1).parameters(), lr=1e-3)
    schedules = schedule(found, Schedule(), 3, 4), lr_scheduler.OneCycleLR(expected, 1e-3, total_steps=12)
    for _ in range(12):
        for key in ("lr", "betas"):
            assert found.param_groups[0][key] == expected.param_groups[0][key]
        for one, scheduler in zip((found, expected), schedules, strict=True):
            one.step()
            scheduler.step()


@pytest.mark.parametrize(
    ("params", "new"),
    [
        (Schedule(name="constant"), lambda one: lr_scheduler.LambdaLR(one, lambda _: 1)),
        (Schedule(name="cosine"), lambda one: lr_scheduler.CosineAnnealingLR(one, 25)),
        (Schedule(name="exponential", gamma=0.6), lambda one: lr_scheduler.ExponentialLR(one, 0.6)),
        (
            Schedule(name="multi_step", milestones=[3, 5, 20]),
            lambda one: lr_scheduler.MultiStepLR(one, [3, 5, 20]),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_schedule_is_torchs_stepped_per_epoch(params, new):
    found = rates(params, 25, steps=3)
    np.testing.assert_allclose(found, np.transpose([per_epoch(new, 25)] * 3), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("epochs", [2, 10])
def test_a_cosine_follows_the_epochs(epochs):
    found = rates(Schedule(name="cosine"), epochs)[:, 0]
    np.testing.assert_allclose(found[epochs // 2], 5e-4)
    assert found[-1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * (epochs - 1) / epochs)) / 2)


def test_a_clipped_cosine_reaches_its_lowest_rate_in_epoch_21():
    found = rates(Schedule(name="clipped_cosine", min_lr=1e-4), 25, steps=2)
    plain = rates(Schedule(name="cosine"), 25, steps=2)
    np.testing.assert_array_equal(found[:20], plain[:20])
    assert found[19].min() > 1.3e-4
    np.testing.assert_allclose(found[20:], 1e-4)


def test_o_o_steps():
    params = Schedule(name="multi_step", milestones=[150, 220])
    found = rates(params, 251, lr=3e-3)[:, 0]
    np.testing.assert_allclose(found, np.repeat([3e-3, 3e-4, 3e-5], [150, 70, 31]))


def test_warm_up_is_part_of_the_epochs():
    found = rates(Schedule(name="cosine", warmup_epochs=2), 6, steps=4)
    np.testing.assert_allclose(found[:2].ravel(), 1e-3 * np.arange(1, 9) / 8)
    cosine = rates(Schedule(name="cosine"), 4, steps=4)
    np.testing.assert_array_equal(found[2:], cosine)


def test_a_warm_up_of_half_an_epoch():
    found = rates(Schedule(name="exponential", gamma=0.5, warmup_epochs=0.5), 3, steps=4)
    np.testing.assert_allclose(found[0], [5e-4, 1e-3, 1e-3, 1e-3])
    np.testing.assert_allclose(found[1:, 0], 1e-3 * np.array([0.5**0.5, 0.5**1.5]))


def test_groups_keep_the_ratios_of_their_rates():
    one = optimizer(graded("test_vit"), name="adamw", lr=1e-3, weight_decay=0, layer_decay=0.5)
    peaks = np.array([group["lr"] for group in one.param_groups])
    scheduler = schedule(one, Schedule(name="clipped_cosine", min_lr=1e-4), 1, 25)
    for _ in range(24):
        one.step()
        scheduler.step()
    np.testing.assert_allclose([group["lr"] for group in one.param_groups], 0.1 * peaks)
    one = optimizer(graded("test_vit"), name="adamw", lr=1e-3, weight_decay=0, layer_decay=0.5)
    scheduler, highest = schedule(one, Schedule(), 10, 2), np.zeros(len(peaks))
    for _ in range(20):
        highest = np.maximum(highest, [group["lr"] for group in one.param_groups])
        one.step()
        scheduler.step()
    np.testing.assert_allclose(highest, peaks, rtol=0.02)


def plateau(params: Schedule, losses: list[float], steps: int = 2, lr: float = 1e-3) -> list[float]:
    """Rates of all steps, with the given training losses."""
    one, found = small(lr=lr), []
    scheduler = schedule(one, params, steps, len(losses))
    for loss in losses:
        for _ in range(steps):
            found.append(one.param_groups[0]["lr"])
            one.step()
            scheduler.step()
        scheduler.judge(loss)
        assert scheduler.get_last_lr() == [one.param_groups[0]["lr"]]
    return found


def test_a_plateau_lowers_the_rate_as_torchs_does():
    losses = [5, 4, 4, 4, 3, 3, 3, 3.0, 3, 3, 3, 2, 2, 2, 2]
    one, expected = torch.optim.SGD([torch.zeros(1)], lr=1e-3), []
    scheduler = lr_scheduler.ReduceLROnPlateau(one, factor=0.5, patience=1, min_lr=2e-4)
    for loss in losses:
        expected += 2 * [one.param_groups[0]["lr"]]
        scheduler.step(loss)
    params = Schedule(name="plateau", gamma=0.5, patience=1, min_lr=2e-4)
    found = plateau(params, losses)
    np.testing.assert_allclose(found, expected)
    assert min(found) == pytest.approx(2e-4)


def test_a_plateau_does_not_judge_the_warm_up():
    params = Schedule(name="plateau", gamma=0.5, patience=0, warmup_epochs=2)
    found = plateau(params, [1.0, 1.0, 2.0, 2.0, 2.0])
    # the third epoch sets the mark although its loss is higher; the fourth misses it
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.5, 0.5]
    np.testing.assert_allclose(found, 1e-3 * np.array(expected))


@pytest.mark.parametrize(
    "params",
    [
        Schedule(),
        Schedule(name="cosine", warmup_epochs=1.5),
        Schedule(name="multi_step", milestones=[2]),
        Schedule(name="plateau", patience=0, gamma=0.5, warmup_epochs=0.5),
    ],
    ids=lambda params: params.name,
)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_schedule_continues(params, stop, tmp_path):
    """A checkpoint after ``stop`` epochs holds the states of optimiser and schedule."""

    def run(first: int, last: int, state=None):
        one = small(name="adamw")
        scheduler = schedule(one, params, 3, 6)
        if state:
            one.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["schedule"])
        found = []
        for epoch in range(first, last):
            for _ in range(3):
                found.append((one.param_groups[0]["lr"], one.param_groups[0]["betas"]))
                one.step()
                scheduler.step()
            if isinstance(scheduler, Plateau):
                scheduler.judge([3, 2, 2, 2, 1, 1][epoch])
        return found, {"optimizer": one.state_dict(), "schedule": scheduler.state_dict()}

    whole, _ = run(0, 6)
    before, state = run(0, stop)
    torch.save(state, tmp_path / "last.ckpt")
    after, _ = run(stop, 6, torch.load(tmp_path / "last.ckpt"))
    assert len(set(whole)) > 1
    assert before + after == whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cosine", "warmup_epochs": 3}, "schedule.warmup_epochs: must be below epochs, 3; lower it"),
        ({"name": "plateau", "min_lr": 1e-3}, "schedule.min_lr: must be below lr, 0.001; lower it"),
    ],
)
def test_a_schedule_that_does_not_fit_the_training(values, message):
    with pytest.raises(UserError) as raised:
        schedule(small(), Schedule(**values), 2, 3)
    assert str(raised.value) == message


def test_a_plateau_is_no_function_of_the_step():
    with pytest.raises(ValueError, match="plateau"):
        factor(Schedule(name="plateau"), 0, 1, 1, 1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "multi_step"}, "multi_step needs milestones; list them"),
        ({"name": "multi_step", "milestones": [5, 3]}, r"milestones must increase, not \[5, 3\]; sort them"),
        ({"name": "multi_step", "milestones": [3, 3]}, "milestones must increase"),
        ({"name": "clipped_cosine"}, "clipped_cosine needs min_lr above 0"),
        ({"warmup_epochs": 1.0}, "one_cycle has its own warm-up"),
    ],
)
def test_schedules_that_contradict_themselves(values, message):
    with pytest.raises(ValidationError, match=message):
        Schedule(**values)

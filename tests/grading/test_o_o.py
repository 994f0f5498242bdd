"""Oracles: sections 4 to 7 of o_O's published facts; the weights of the networks that others start from."""

import json
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from drgrade.errors import UserError
from drgrade.grading.base import Grader, Job, Photographs, Start
from drgrade.grading.finetune import Finetune
from drgrade.grading.finetune import Params as FinetuneParams
from drgrade.grading.models import load_model
from drgrade.grading.o_o import OO, Params
from drgrade.grading.optimise import factor
from drgrade.grading.ram import Ram
from drgrade.params import BY_GRADER, Crop, Experiment, check, check_block
from drgrade.tracking import NullRun

SMALL = {
    "encoder": "o_o_128_5x5", "tied_biases": True, "input_size": 48, "epochs": 1, "batch_size": 3,
}  # fmt: skip
"""48 pixels are the least that this network takes."""
TABLE = {  # batch, translation in pixels, sigma of the colour noise, milestones, epochs
    "o_o_128_4x4": (128, 10, 0.25, [150], 201),
    "o_o_128_5x5": (128, 40, 0.5, [150], 201),
    "o_o_256_4x4": (128, 20, 0.25, [150], 201),
    "o_o_256_5x5": (128, 40, 0.5, [150], 201),
    "o_o_512_4x4": (48, 40, 0.25, [150, 220], 251),
    "o_o_512_5x5": (32, 40, 0.5, [150, 220], 251),
}
OTHER = {
    "input_size": 64, "epochs": 3, "batch_size": 7, "accumulate": 2, "loss": "mae", "optimizer": "adam",
    "class_weights": "balance", "lr": 9.0, "momentum": 0.5, "weight_decay": 9.0, "decay": "all", "clip": 1.0,
    "layer_decay": 0.5, "weights_ema": 0.9, "normalisation": "train",
    "sampling": {"strategy": "class", "decay": 0.5},
    "schedule": {"name": "cosine", "warmup_epochs": 2.0, "gamma": 0.5},
    "augment": {"hue": 0.1, "saturation": 0.3, "grayscale": 0.4, "contrast": 0.5, "brightness": 0.5},
    "select": "last", "test_time": {"transforms": 3}, "checkpoints": ["last"], "compile": True,
}  # fmt: skip
"""A block ``grade`` that is as published in nothing."""


def resolved(experiment: dict) -> Experiment:
    """An experiment over a block ``grade`` of other values."""
    blocks = {"grade": OTHER, "explanations": {}, "experiments": {"a": experiment}}
    return check(blocks, "x").experiment("a")


@pytest.mark.parametrize("encoder", TABLE)
def test_training_is_as_published_whatever_the_block_grade_says(encoder):
    batch, shift, sigma, milestones, epochs = TABLE[encoder]
    params = resolved({"grader": "o_o", "encoder": encoder})
    side = int(encoder.split("_")[2])
    assert (params.input_size, params.batch_size, params.epochs) == (side, batch, epochs)
    assert (params.optimizer, params.lr, params.momentum, params.loss) == ("sgd", 3e-3, 0.9, "mse")
    assert (params.weight_decay, params.decay) == (2 * 0.0005, "weights")  # the gradient of 0.0005 w^2
    assert params.schedule.milestones == milestones
    assert params.sampling.model_dump() == {
        "strategy": "o_o", "decay": None, "final_weights": [1, 2, 2, 2, 2],
    }  # fmt: skip
    changes = params.augment
    assert changes.translate * side == pytest.approx(shift)
    assert changes.pca == sigma
    assert changes.zoom == pytest.approx([1 / 1.15, 1.15])
    assert (changes.flip, changes.rotation, changes.scale, changes.ratio) == (0.5, 180, [1, 1], [1, 1])
    assert not any([changes.brightness, changes.contrast, changes.saturation, changes.hue, changes.grayscale])
    assert (params.accumulate, params.class_weights, params.normalisation) == (1, "none", "encoder")
    assert (params.clip, params.layer_decay, params.weights_ema) == (None, None, None)
    # what is no part of the training still comes from the block
    assert (params.select, params.test_time.transforms, params.checkpoints) == ("last", 3, ["last"])
    assert params.compile


@pytest.mark.parametrize(("encoder", "rates"), [
    ("o_o_128_5x5", {1: 3e-3, 150: 3e-3, 151: 3e-4, 201: 3e-4}),
    ("o_o_512_4x4", {150: 3e-3, 151: 3e-4, 220: 3e-4, 221: 3e-5, 251: 3e-5}),
])  # fmt: skip
def test_the_rate_falls_after_the_named_epochs(encoder, rates):
    """Epochs count from 1, and a change applies at the end of its epoch; ten steps an epoch."""
    params = Params(encoder=encoder)
    for epoch, rate in rates.items():
        for step in (10 * (epoch - 1), 10 * epoch - 1):
            found = params.lr * factor(params.schedule, step, 10, params.epochs, params.lr)
            assert found == pytest.approx(rate), epoch


def test_an_experiment_overrides_what_is_published():
    own = {"lr": 0.5, "augment": {"translate": 0.2}, "schedule": {"name": "constant"}, "input_size": 256}
    params = resolved({"grader": "o_o", "encoder": "o_o_128_4x4", "tied_biases": True} | own)
    assert (params.lr, params.input_size, params.schedule.name) == (0.5, 256, "constant")
    assert (params.augment.translate, params.augment.pca, params.augment.hue) == (0.2, 0.25, 0)
    assert (params.epochs, params.schedule.warmup_epochs) == (201, 0)  # still published
    whole = json.dumps(params.model_dump())
    assert check_block(Annotated[Experiment, BY_GRADER], whole, "x") == params
    assert params.over(check({}, "x").grade) == params


@pytest.mark.parametrize(("values", "message"), [
    ({"loss": "cross_entropy"}, "these networks have one output; take mse, mae or smooth_l1"),
    ({"encoder": "resnet18"}, "must be a network of o_O, such as o_o_128_5x5; for others take finetune"),
])  # fmt: skip
def test_what_these_networks_cannot_be_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Params(**values)


@pytest.mark.parametrize(("loss", "expected"), [("mse", 8.5), ("mae", 2.5), ("smooth_l1", 2.0)])
@pytest.mark.parametrize("grader", [OO, Ram])
def test_the_loss_may_be_another_one_of_a_single_output(grader, loss, expected):
    """Errors of 1 and 4 grades: (1 + 16) / 2, (1 + 4) / 2, (1 / 2 + 7 / 2) / 2."""
    network = grader(grader.Params(loss=loss), Crop()).new_network("random")
    assert network.loss(torch.tensor([1.0, 4.0]), torch.tensor([0, 0])).item() == expected


@pytest.mark.parametrize(("encoder", "other", "possible"), [
    ("o_o_256_5x5", "o_o_128_5x5", True),
    ("o_o_ram_256_5x5", "o_o_128_5x5", True),
    ("o_o_512_4x4", "o_o_256_4x4", True),
    ("o_o_256_5x5", "o_o_128_4x4", False),
    ("o_o_ram_256_5x5_hires", "o_o_ram_128_5x5", False),  # 16 and 32 channels
    ("o_o_ram_512_5x5_hires", "o_o_ram_256_5x5_hires", True),
    ("o_o_256_5x5", "resnet18", False),
])  # fmt: skip
def test_networks_start_from_those_with_the_same_first_convolution(encoder, other, possible):
    assert Params(encoder=encoder).can_start_from(other) is possible


def saved(grader: Grader, folder, seed: int = 1) -> Start:
    """The start from a network with random weights, all unlike those of a new one, saved as a trained one."""
    torch.manual_seed(seed)
    grader.network = grader.new_network("random")
    with torch.no_grad():
        for value in grader.network.parameters():
            value.add_(torch.rand_like(value))
    grader.save(folder)
    return Start("experiment", folder / "model.safetensors")


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


def test_a_larger_network_starts_from_the_convolutions(tmp_path, caplog):
    """Untied biases and the head start anew, as published; the log says which tensors are which."""
    caplog.set_level("INFO")
    start = saved(small := OO(Params(encoder="o_o_128_5x5"), Crop()), tmp_path)
    params = Params(encoder="o_o_256_5x5", start="experiment:a")
    network = OO(params, Crop()).begin(start)
    found, trained = convolutions(network), convolutions(small.network)
    assert len(found) > len(trained) > 7
    for name, layer in trained.items():
        assert torch.equal(found[name].weight, layer.weight), name
        assert found[name].bias.eq(0.05).all(), name
    assert network.head.output.bias.item() == 0
    assert network.head.dense1.bias.eq(0.05).all()
    copied, anew = (record.getMessage() for record in caplog.records)
    listed = [f"{name.removeprefix('encoder.')}.weight" for name in trained]
    assert copied == f"{start.path}: {len(listed)} tensors copied: {', '.join(listed)}"
    assert "and the head, start anew: trunk.conv1.bias, " in anew


def test_biases_are_copied_on_request(tmp_path):
    tied = {"tied_biases": True, "batch_norm": True}
    start = saved(small := OO(Params(**tied), Crop()), tmp_path)
    network = OO(Params(encoder="o_o_256_5x5", **tied), Crop()).begin(start)
    last = "encoder.trunk.conv7"
    own, other = convolutions(network)[last], convolutions(small.network)[last]
    assert torch.equal(own.bias, other.bias)  # of a channel, so no size matters
    assert torch.equal(own.norm.weight, other.norm.weight)
    untied = saved(small := OO(Params(), Crop()), tmp_path / "untied")
    network = OO(Params(encoder="o_o_256_5x5", interpolate_biases=True), Crop()).begin(untied)
    own, other = convolutions(network)[last].bias, convolutions(small.network)[last].bias
    assert own.shape[-1] > other.shape[-1]
    assert other.min() <= own.min() < own.max() <= other.max()


def test_the_same_network_starts_from_all_tensors(tmp_path):
    start = saved(small := OO(Params(), Crop()), tmp_path)
    found, trained = OO(Params(), Crop()).begin(start).state_dict(), small.network.state_dict()
    assert found.keys() == trained.keys()
    assert all(torch.equal(value, trained[key]) for key, value in found.items())


@pytest.mark.parametrize(("other", "reason"), [
    (OO(Params(encoder="o_o_128_4x4"), Crop()), r"conv1.weight is \(32, 3, 4, 4\), expected \(32, 3, 5, 5\)"),
    (Finetune(FinetuneParams(encoder="test_efficientnet"), Crop()), "trunk.conv1.weight is missing"),
])  # fmt: skip
def test_a_file_that_fits_nothing_is_refused_by_name(other, reason, tmp_path):
    start = saved(other, tmp_path)
    with pytest.raises(UserError, match=reason) as error:
        OO(Params(encoder="o_o_256_5x5"), Crop()).begin(start)
    assert str(error.value).startswith(f"{start.path}: ")
    assert "\n" not in str(error.value)


def photographs(side: int, grades: list[int]) -> Photographs:
    images = np.random.default_rng(0).integers(0, 256, (len(grades), side, side, 3), np.uint8)
    return Photographs(images, pd.DataFrame({"grade": grades, "row": range(len(grades))}))


@pytest.mark.parametrize(("changed", "lowest"), [
    ({}, 0),
    ({"linear_output": True, "loss": "smooth_l1"}, -np.inf),
    ({"input_size": 128, "tied_biases": False}, 0),
])  # fmt: skip
def test_it_trains_saves_and_grades(changed, lowest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = Params(**SMALL | {"lr": 1e-4} | changed)
    part = photographs(params.input_size, [0, 0, 0, 1, 2, 4])
    grader = OO(params, Crop())
    grader.fit(Job(part, part, Start("random"), 3, "t", "key", NullRun()))
    output = grader.predict(part)
    grader.save(tmp_path / "model")
    again = load_model(tmp_path / "model").predict(part)
    np.testing.assert_array_equal(again.probabilities, output.probabilities)
    raw = grader.network.read(torch.from_numpy(output.features)).detach().numpy()
    assert (raw >= lowest).all()
    np.testing.assert_allclose(output.score, np.clip(raw, 0, 4), atol=1e-5)


def test_a_larger_network_is_trained_from_a_smaller_one(tmp_path, monkeypatch):
    """The convolutions before the first step are those of the smaller network, which is trained."""
    monkeypatch.chdir(tmp_path)
    start = saved(small := OO(Params(**SMALL), Crop()), tmp_path)
    begun = {}

    def fit(module, **_):
        begun.update({key: value.clone() for key, value in module.network.state_dict().items()})

    monkeypatch.setattr("drgrade.training.fit", fit)
    part = photographs(112, [0, 1, 2])
    params = Params(**SMALL | {"encoder": "o_o_256_5x5", "input_size": 112, "start": "experiment:a"})
    OO(params, Crop()).fit(Job(part, part, start, 3, "t", "key", NullRun()))
    for name, layer in convolutions(small.network).items():
        assert torch.equal(begun[f"{name}.weight"], layer.weight)
        assert torch.equal(begun[f"{name}.bias"], layer.bias)  # tied

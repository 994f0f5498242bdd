"""Oracles: section 13 of the published facts about regression activation maps."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.models import load_model
from drgrade.grading.ram import Params, Ram
from drgrade.params import Crop, check
from drgrade.tracking import NullRun

TABLE = {  # rate, milestones, batch, epochs, sigma of the colour noise, shift as a share of the side
    "o_o_ram_128_4x4": (3e-3, [150], 128, 201, 0.25, 10 / 128),
    "o_o_ram_128_5x5": (1e-3, [150], 128, 201, 0.5, 40 / 128),
    "o_o_ram_256_4x4": (1e-3, [150], 128, 201, 0.25, 20 / 256),
    "o_o_ram_256_5x5": (1e-3, [150], 128, 201, 0.5, 40 / 256),
    "o_o_ram_512_4x4": (1e-4, [100], 32, 251, 0.25, 40 / 512),
    "o_o_ram_512_5x5": (1e-4, [150], 32, 251, 0.5, 40 / 512),
    "o_o_ram_256_5x5_hires": (1e-3, [150], 128, 201, 0.5, 40 / 256),
}


@pytest.mark.parametrize("encoder", TABLE)
def test_training_is_as_published_whatever_the_block_grade_says(encoder):
    lr, milestones, batch, epochs, sigma, shift = TABLE[encoder]
    grade = {"lr": 9.0, "batch_size": 7, "momentum": 0.5, "loss": "mae", "augment": {"hue": 0.1}}
    blocks = {"grade": grade, "explanations": {}, "experiments": {"a": {"grader": "ram", "encoder": encoder}}}
    params = check(blocks, "x").experiment("a")
    assert (params.lr, params.batch_size, params.epochs) == (lr, batch, epochs)
    assert (params.schedule.name, params.schedule.milestones) == ("multi_step", milestones)
    assert (params.schedule.gamma, params.momentum, params.loss) == (0.1, 0.9, "mse")
    assert (params.weight_decay, params.decay, params.sampling.strategy) == (1e-3, "weights", "o_o")
    assert (params.augment.pca, params.augment.translate, params.augment.hue) == (sigma, shift, 0)
    assert params.input_size == int(encoder.split("_")[3])
    assert (params.batch_norm, params.tied_biases) == (True, False)


def test_an_experiment_overrides_what_is_published():
    params = Params(encoder="o_o_ram_512_4x4", lr=0.5, schedule={"gamma": 0.3}, batch_norm=False)
    assert (params.lr, params.batch_norm) == (0.5, False)
    assert (params.schedule.gamma, params.schedule.milestones) == (0.3, [100])


SMALL = {
    "encoder": "o_o_ram_128_4x4", "tied_biases": True, "input_size": 32, "epochs": 1, "batch_size": 3,
}  # fmt: skip
"""32 pixels are the least that this network takes."""


@pytest.mark.parametrize("relu", [False, True])
def test_the_score_is_linear_in_the_mean_of_the_last_map(relu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    part = Photographs(images, pd.DataFrame({"grade": [0, 0, 0, 1, 2, 4], "row": range(6)}))
    grader = Ram(Params(**SMALL, relu_output=relu), Crop())
    grader.fit(Job(part, part, Start("random"), 3, "t", "key", NullRun()))
    with torch.no_grad():  # scores on both sides of 0, where the ReLU is
        features = grader.network.eval().encoder(grader.preprocess.normalised(batch))
        grader.network.head.weight.mul_(100)
        grader.network.head.bias.sub_(grader.network.head(features).mean())
    grader.save(tmp_path / "model")
    grader = load_model(tmp_path / "model")
    output = grader.predict(part)
    assert isinstance(grader, Ram)
    with torch.no_grad():
        batch = grader.preprocess.normalised(batch)
        maps = grader.network.encoder.forward_features(batch).mean((2, 3))
        scores = nn.functional.linear(maps, grader.network.head.weight, grader.network.head.bias)[:, 0]
        found = grader.network(batch)
    assert scores.min() < 0 < scores.max()
    assert torch.allclose(found, scores.relu() if relu else scores, atol=1e-4)
    np.testing.assert_allclose(output.features, maps, atol=1e-4)
    np.testing.assert_allclose(output.score, scores.clip(0, 4), atol=1e-4)


def test_batch_norm_and_leak_reach_the_network():
    plain = Ram(Params(**SMALL, batch_norm=False, leak=0.33), Crop()).new_network("random")
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert plain.encoder.trunk.conv1.leak == 0.33
    normed = Ram(Params(**SMALL), Crop()).new_network("random")
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normed.modules()) == 8  # input, 7 of 8 maps


def test_a_larger_network_starts_from_the_convolutions_and_their_normalisation(tmp_path):
    small = Ram(Params(), Crop())
    small.network = small.new_network("random")
    with torch.no_grad():
        small.network.encoder.trunk.conv2.norm.running_mean.fill_(7)
    small.save(tmp_path)
    start = Start("experiment", tmp_path / "model.safetensors")
    network = Ram(Params(encoder="o_o_ram_256_5x5"), Crop()).begin(start)
    own, other = network.encoder.trunk, small.network.encoder.trunk
    for number in range(1, 9):
        name = f"conv{number}"
        assert torch.equal(own.get_submodule(name).weight, other.get_submodule(name).weight)
    assert own.conv2.norm.running_mean.eq(7).all()

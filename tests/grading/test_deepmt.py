"""The grader: its params, saving and loading, heat maps, start weights. Its training has tests of its own."""

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from tests.grading.deepmt_examples import SIDE, same, settings, state

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS
from drgrade.grading.base import GRADERS, Photographs, Start
from drgrade.grading.deepmt import DeepMT, Params
from drgrade.grading.deepmt_network import DeepMTNetwork
from drgrade.grading.models import load_model
from drgrade.params import Crop, Grade


def test_sizes_are_the_published_ones_unless_set():
    assert [(Params(scale=scale).input_size, Params(scale=scale).high_size) for scale in (2, 4, 8)] == [
        (512, 1024), (256, 1024), (128, 1024),
    ]  # fmt: skip
    assert Params().over(Grade(input_size=64)).input_size == 256
    assert Params(input_size=64).over(Grade()).high_size == 256
    with pytest.raises(ValidationError, match="input_size times scale must be a multiple of 16, not 132"):
        Params(input_size=33)


def test_published_weights_are_defaults():
    weights = Params().loss_weights.model_dump()
    assert weights.pop("pseudo") == 0.1
    assert weights == {
        "image": 1, "variation": 1e-6, "segmentation": 1, "segmentation_aware": 10,
        "joint_segmentation_aware": 1, "grading_aware": 10, "grade": 1,
    }  # fmt: skip
    params = Params()
    assert (params.restoration.lr, params.grading.lr, params.joint.lr) == (1e-4, 1e-4, 5e-5)
    assert Params(joint={"epochs": 3}).joint.lr == 5e-5  # the other keys keep their defaults


def test_crops_are_the_high_resolution_images():
    with pytest.raises(
        UserError, match=r"^input_size: 256 times scale 4 is 1024, but crop\.size is 512; set"
    ):
        DeepMT(Params(), Crop(size=512))


@pytest.fixture
def grader() -> DeepMT:
    """A model of random weights; none of them is 0, so that all networks matter."""
    torch.manual_seed(0)
    made = DeepMT(settings(), Crop(size=SIDE))
    made.network = made.new_network("random")
    for parameter in made.network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made


def test_a_saved_model_predicts_from_crops_alone(grader, tmp_path):
    grader.save(tmp_path)
    loaded = load_model(tmp_path)
    assert same(state(loaded), state(grader))
    new = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    shown = Photographs(new, pd.DataFrame({"row": range(3)}))
    output = loaded.predict(shown)
    assert output.features.shape == (3, 8)
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(output.probabilities, grader.predict(shown).probabilities)
    low = loaded.preprocess.normalised(torch.from_numpy(loaded.preprocess.scaled(new)[:]).permute(0, 3, 1, 2))
    assert low.shape[-1] == SIDE // 2
    assert (low.min() >= 0) & (low.max() <= 1)
    with torch.no_grad():
        expected = loaded.network.cpu()(low).softmax(dim=1)
    np.testing.assert_allclose(output.probabilities, expected, atol=1e-5)
    means, deviations = loaded.moments(shown, None)
    np.testing.assert_allclose(means, output.features, atol=1e-6)
    assert not deviations.any()


def test_a_model_with_a_missing_tensor_is_refused(grader, tmp_path):
    grader.save(tmp_path)
    other = DeepMT(settings(hidden=9), Crop(size=SIDE))
    other.network = other.new_network("random")
    other.save(tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors: not the tensors of"):
        load_model(tmp_path)


@pytest.mark.parametrize("method", ["cam", "gmsv"])
@pytest.mark.parametrize("loss", ["distance", "mse"])
def test_heat_maps(method, loss):
    """They cover the low-resolution image. What speaks against a grade speaks for it when signs change."""
    torch.manual_seed(0)
    grader = DeepMT(settings(grade_loss=loss), Crop(size=SIDE))
    grader.network = grader.new_network("random")
    explained = grader.explainable()
    batch = torch.rand(2, 3, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    assert explained.network(batch).shape == ((2, 5) if loss == "distance" else (2,))
    heats = []
    for _ in range(2):
        heats.append(EXPLAINERS.get(method)().heat(explained.network, batch))
        grader.network.head.weight.data.neg_()
    assert np.shape(heats) == (2, 2, SIDE // 2, SIDE // 2)
    assert np.min(heats) >= 0
    assert (np.max(heats, axis=(0, 2, 3)) > 0.8).all()
    assert all(parameter.grad is None for parameter in grader.network.encoder.restore.parameters())


def test_another_experiments_network_is_a_start(grader, tmp_path):
    grader.save(tmp_path)
    other = DeepMT(settings(), Crop(size=SIDE))
    network = other.begin(Start("experiment", tmp_path / "model.safetensors"))
    assert isinstance(network, DeepMTNetwork)
    assert same(network.state_dict(), state(grader))


def test_it_is_a_grader_that_needs_masks():
    assert GRADERS.get("deepmt") is DeepMT
    assert DeepMT.needs == {"masks"}

"""Lesion maps against the networks' own lesion probabilities, and where there are none."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import drgrade.networks.clpi as clpi
from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, InGrades
from drgrade.grading.clpi_network import ClpiNetwork
from drgrade.grading.deepmt import DeepMT, Params
from drgrade.grading.regression import EncoderWithHead, Scores
from drgrade.networks.deepmt import multi_task
from drgrade.params import Crop

LESION_MAPS = EXPLAINERS.get("lesion_maps")


def images(side: int, count: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def grader_of_clpi() -> Scores:
    torch.manual_seed(0)
    return Scores(ClpiNetwork(clpi.Encoder(clpi.Architecture(4, (1, 1, 1, 1)))))


def network_of_deepmt(**changed: object) -> nn.Module:
    settings = {
        "super_resolution_width": 4, "super_resolution_blocks": 1, "segmentation_width": 4, "hidden": 16,
        "input_size": 32, "scale": 2, "encoder": "test_resnet", "start": "random",
    }  # fmt: skip
    torch.manual_seed(0)
    grader = DeepMT(Params(**settings | changed), Crop(size=64))
    grader.network = grader.new_network("random")
    return grader.explainable().network


@pytest.mark.parametrize("wrapped", [True, False])
def test_clpi_sees_what_is_not_normal(wrapped, monkeypatch):
    model, batch = grader_of_clpi(), images(128, 9)  # of two batches
    heat = LESION_MAPS().heat(model if wrapped else model.network.encoder, batch)
    assert not model.network.encoder.lesions.training
    with torch.no_grad():
        logits = model.network.encoder.lesions(batch).double().numpy()
    lesions = np.exp(logits[:, 1:]).sum(axis=1)
    np.testing.assert_allclose(heat, lesions / (lesions + np.exp(logits[:, 0])), atol=1e-5)
    assert (heat.shape, heat.dtype) == ((9, 2, 2), np.float32)
    monkeypatch.setattr(clpi, "AT_ONCE", 128**2)  # one image at a time
    np.testing.assert_allclose(LESION_MAPS().heat(model, batch), heat, atol=1e-5)


@pytest.mark.parametrize("super_resolution", ["joint", "none"])
def test_deepmt_sees_the_likeliest_kind_in_the_enlarged_image(super_resolution, monkeypatch):
    model, batch = network_of_deepmt(super_resolution=super_resolution), images(32, 9)
    heat = LESION_MAPS().heat(model, batch)
    encoder = model.network.encoder
    with torch.no_grad():
        logits = encoder.segment(encoder.restore(batch)).double().numpy()
    np.testing.assert_allclose(heat, 1 / (1 + np.exp(-logits.max(axis=1))), atol=1e-5)
    assert (heat.shape, heat.dtype) == ((9, 64, 64), np.float32)
    assert np.ptp(heat) > 0.01
    monkeypatch.setattr(multi_task, "PIXELS", 64**2)  # one image at a time
    np.testing.assert_allclose(LESION_MAPS().heat(model, batch), heat, atol=1e-5)


def test_heads_do_not_matter():
    """The grading network has no part in the map."""
    model, batch = network_of_deepmt(), images(32, 2)
    before = LESION_MAPS().heat(model, batch)
    for module in (model.network.head, model.network.encoder.hidden, model.network.encoder.encoder):
        for parameter in module.parameters():
            parameter.data.add_(1)
    np.testing.assert_array_equal(LESION_MAPS().heat(model, batch), before)


def test_it_is_not_in_grades():
    assert not isinstance(LESION_MAPS(), InGrades)


def test_networks_that_see_no_lesions_are_refused():
    plain = Scores(EncoderWithHead(create_encoder("test_resnet", "random")))
    cases = {"ResNet has none": plain, "built without segmentation": network_of_deepmt(segmentation="none")}
    for reason, model in cases.items():
        with pytest.raises(UserError) as refused:
            LESION_MAPS().heat(model, images(32, 1))
        line = str(refused.value)
        assert line.startswith("explanations.<name>.method: lesion_maps needs a grader with a lesion network")
        assert reason in line
        assert line.endswith("; use cam, or explain another experiment")
        assert "\n" not in line

from dataclasses import replace

import numpy as np
import pytest
from tests.images.test_read import eye, save
from torch import nn

from drgrade.errors import UserError
from drgrade.explain.attention import ClassAttention
from drgrade.explain.cam import GradCam
from drgrade.explain.ram import RegressionActivationMap
from drgrade.grading.base import Explainable
from drgrade.grading.finetune import Finetune, Params
from drgrade.grading.majority import Majority
from drgrade.images.prepare import prepare
from drgrade.images.preprocess import Preprocess
from drgrade.params import Crop, Experiment
from drgrade.predict.heat_maps import HeatMaps

CROP = Crop(size=32)


class Halves:
    """The left half of every map is hot: as hot as the network says."""

    def heat(self, model, batch):
        maps = np.zeros((len(batch), *batch.shape[2:]), np.float32)
        maps[..., : maps.shape[-1] // 2] = model.hot
        return maps


class HalvesInGrades(Halves):
    def values(self, model, batch):
        return 4 * self.heat(model, batch)


def explained(hot):
    network = nn.Identity()
    network.hot = hot
    return Explainable(network, Preprocess(CROP, 32, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize("explainer", [Halves(), HalvesInGrades()])
def test_maps_are_means_over_the_networks(explainer):
    maps = HeatMaps([explained(0.2), explained(0.6)], explainer)
    heat = maps.heat(np.zeros((2, 32, 32, 3), np.uint8))
    assert heat.shape == (2, 32, 32)
    np.testing.assert_allclose(heat[..., :16], 0.4, rtol=1e-6)
    assert not heat[..., 16:].any()


def test_values_are_averaged_before_they_are_limited():
    """Grades -2 and 4 have the mean 1; limited first, they would have the mean 2."""
    maps = HeatMaps([explained(-0.5), explained(1.0)], HalvesInGrades())
    np.testing.assert_allclose(maps.heat(np.zeros((1, 32, 32, 3), np.uint8))[..., :16], 0.25)


@pytest.mark.parametrize("side", [None, 90])
def test_a_map_lies_where_its_crop_does(tmp_path, side):
    """The eye is in the middle: the left half of its crop ends there, and begins 280 px before."""
    path = save(tmp_path / "a.png", eye(900, 600, 280))
    found = prepare(path, CROP, small=side or 900)
    maps = HeatMaps([explained(1.0)], Halves(), side=side or 900)
    drawing = maps.draw(found, maps.heat(found.crop[None])[0])
    assert drawing.shape == found.small.shape
    changed = np.flatnonzero((drawing != found.small).any(axis=(0, 2))) * 900 / drawing.shape[1]
    assert changed[0] == pytest.approx(170, abs=12)
    assert changed[-1] == pytest.approx(450, abs=20)  # between two of 32 columns the map falls to 0


def finetuned(encoder="tf_efficientnet_lite0", loss="mse"):
    grader = Finetune(Params(encoder=encoder, input_size=32, loss=loss), CROP)
    grader.network = grader.new_network("random")
    return grader


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, RegressionActivationMap),
        ({"loss": "cross_entropy"}, GradCam),
        ({"encoder": "test_vit"}, ClassAttention),
    ],
)
def test_the_method_suits_the_network(options, method):
    assert isinstance(HeatMaps.of([finetuned(**options)]).explainer, method)


def test_what_has_no_network_is_refused():
    with pytest.raises(UserError, match="--explain: the grader majority has no network to explain"):
        HeatMaps.of([Majority(Experiment(grader="majority"), CROP)])


def test_photographs_of_one_pixel_crops_are_drawn(tmp_path):
    found = prepare(save(tmp_path / "a.png", eye(900, 600, 280)), CROP, small=90)
    tiny = replace(found.geometry, x0=449, y0=299, x1=451, y1=301)
    maps = HeatMaps([explained(1.0)], Halves(), side=90)
    assert maps.draw(found._replace(geometry=tiny), np.ones((4, 4), np.float32)).shape == (60, 90, 3)

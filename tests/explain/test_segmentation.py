"""The segmentation as a heat map: which network predicts which photograph, and where the values land."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, LesionResults
from drgrade.explain.photographs import Photograph
from drgrade.images.geometry import CropGeometry
from drgrade.params import Segmentation
from drgrade.segmentation import measure, parts

METHOD = EXPLAINERS.get("segmentation")
NAMES = ["p0", "p1", "p2", "tested", "graded"]


class Constant(torch.nn.Module):
    """Predicts the same probabilities of two kinds at every pixel."""

    kinds = ("MA", "EX")

    def __init__(self, params: Segmentation, *probabilities: float) -> None:
        super().__init__()
        self.params = params
        self.logits = torch.tensor(probabilities).logit()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.logits[:, None, None].expand(len(batch), 2, *batch.shape[2:])


@pytest.fixture
def explainer(monkeypatch):
    """Of three folds, or of a hold-out split; fold k predicts 0.1 (k + 1) and 0.5."""

    def made(folds):
        params = Segmentation(folds=folds, tile=64, scale=1)
        names = parts.part_names(params)
        splits = {name: pd.Series(dtype=object) for name in names}
        for number, name in enumerate(names):
            roles = ["train", "train", "train"]
            roles[number], roles[(number + 1) % 3] = "test", "val"
            splits[name] = pd.Series(roles, index=NAMES[:3])
        networks = {name: Constant(params, 0.1 * (k + 1), 0.5) for k, name in enumerate(names)}
        monkeypatch.setattr(measure, "load_networks", lambda _: networks)
        monkeypatch.setattr(parts, "parts", lambda *_: splits)
        return METHOD(LesionResults(SimpleNamespace(name="masked", index=None), {}, "folder"))

    return made


def dataset(name):
    return SimpleNamespace(name=name, index=pd.DataFrame({"image_id": NAMES}))


def test_each_photograph_is_predicted_by_the_network_that_it_tests(explainer):
    folds = explainer(3)
    chosen = {name: folds.network_for("masked", name) for name in NAMES}
    order = list(folds.networks.values())
    assert [order.index(chosen[name]) for name in NAMES] == [0, 1, 2, 0, 0]
    assert folds.explains(dataset("masked")) == set(NAMES)
    assert folds.network_for("other", "p2") is order[0]  # the same name, another photograph


def test_photographs_that_the_only_network_was_trained_on_are_left_out(explainer):
    holdout = explainer(None)
    assert holdout.explains(dataset("masked")) == {"p0", "p1", "tested", "graded"}
    assert holdout.explains(dataset("graded")) == set(NAMES)
    with pytest.raises(ValueError, match="p2: all networks were trained on it"):
        holdout.heat(photograph("p2"))


def photograph(image_id):
    image = np.full((60, 90, 3), 100, np.uint8)
    return Photograph("masked", image_id, image, CropGeometry(-5, 10, 45, 60, 64))


@pytest.mark.parametrize(("image_id", "first"), [("p0", 0.1), ("p2", 0.3)])
def test_the_probability_of_either_kind_lies_in_the_crop(explainer, image_id, first):
    heat = explainer(3).heat(photograph(image_id))
    expected = np.zeros((60, 90))
    expected[10:, :45] = 1 - (1 - first) * 0.5
    np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert heat.dtype == np.float32


def test_the_folder_must_be_given():
    with pytest.raises(UserError, match=r"^--segmentation: needed by the method segmentation"):
        METHOD(LesionResults(SimpleNamespace(name="masked"), {}))

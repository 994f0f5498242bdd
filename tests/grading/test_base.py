import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Grader, Job, Output, Photographs, Start, interpolated
from drgrade.grading.majority import Majority, Params
from drgrade.grading.models import load_model
from drgrade.images.augment import apply, normalise, repeated
from drgrade.images.quasi import quasi_random
from drgrade.params import Crop, TestTime
from drgrade.tracking import NullRun


@given(st.lists(st.floats(-3, 8), min_size=1, max_size=20))
def test_probabilities_expect_the_clipped_score(scores):
    table = interpolated(np.array(scores))
    assert np.allclose(table.sum(axis=1), 1)
    assert np.allclose(table @ np.arange(5), np.clip(scores, 0, 4))
    assert ((table > 0).sum(axis=1) <= 2).all()


def test_a_score_is_shared_by_its_neighbours():
    assert interpolated(np.array([2.3])) == pytest.approx(np.array([[0, 0, 0.7, 0.3, 0]]))


def test_majority_predicts_the_commonest_grade(tmp_path):
    table = pd.DataFrame({"grade": [2, 2, 4, 0, 0], "row": range(5)})
    images = np.zeros((5, 4, 4, 3), np.uint8)
    part = Photographs(images, table)
    grader = GRADERS.get("majority")(Params(), Crop(size=48))
    grader.fit(Job(part, part, Start("random"), 0, "m", "", NullRun()))
    grader.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Majority)
    assert again.crop == Crop(size=48)
    # a tie of 0 and 2 goes to the lower grade
    output = again.predict(Photographs(images, table[:2]))
    assert output.probabilities.tolist() == [[1, 0, 0, 0, 0]] * 2
    assert output.score.tolist() == [0, 0]


def test_the_score_is_the_expected_grade_unless_it_is_given():
    assert Output(np.array([[0.5, 0, 0.5, 0, 0]])).score == pytest.approx([1])
    assert Output(np.eye(5)[:1], np.array([0.3])).score.tolist() == [0.3]


def test_the_partner_is_the_first_photograph_of_the_other_eye():
    table = pd.DataFrame(
        {
            "patient_id": ["a", "b", "a", "a", None, None, "c"],
            "eye": ["left", "left", "right", "right", "left", "right", None],
            "row": range(7),
        }
    )
    part = Photographs(np.zeros((7, 4, 4, 3), np.uint8), table)
    assert part.partner().tolist() == [2, -1, 0, 0, -1, -1, -1]
    assert Photographs(part.images, table[:0]).partner().tolist() == []


ENCODED: dict[str, dict[str, Any]] = {
    "finetune": {"encoder": "test_efficientnet", "epochs": 1, "batch_size": 4, "loss": "cross_entropy"},
    "linear": {"encoder": "test_efficientnet", "epochs": 2},
    "knn": {"encoder": "test_efficientnet", "k": [3]},
    "fusion": {"encoder": "test_efficientnet", "epochs": 2, "hidden": [8, 4]},
    "o_o": {"encoder": "o_o_ram_128_4x4", "tied_biases": True, "epochs": 1, "batch_size": 4},
    "ram": {"encoder": "o_o_ram_128_4x4", "tied_biases": True, "epochs": 1, "batch_size": 4},
}
"""Every grader with an encoder, for images of 32 pixels."""
CHANGES = {"rotation": 40.0, "brightness": 0.3, "zoom": [0.9, 1.1], "pca": 0.2}


def pairs() -> Photographs:
    """Both eyes of four patients."""
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    images = images.repeat(8, axis=1).repeat(8, axis=2)
    table = pd.DataFrame({"grade": np.arange(8) % 5, "row": range(8), "eye": ["left", "right"] * 4})
    return Photographs(images, table.assign(patient_id=[f"p{n // 2}" for n in range(8)]))


def fitted(name: str, transforms: int) -> Grader:
    kind = GRADERS.get(name)
    options = {"input_size": 32, "augment": CHANGES, "test_time": {"transforms": transforms}}
    grader: Grader = kind(kind.Params(**ENCODED[name] | options), Crop())
    grader.fit(Job(pairs(), pairs(), Start("random"), 0, "t", "key", NullRun()))
    return grader


def module(grader: Grader) -> Any:
    """The encoder, normalised images in."""
    whole = grader.tensors()
    return whole["encoder"] if isinstance(whole, torch.nn.ModuleDict) else whole.encoder


def by_hand(grader: Grader, network: torch.nn.Module, transforms: int) -> np.ndarray:
    """Outputs of a network for each transform of the photographs (transforms, n, ...)."""
    batch = torch.from_numpy(pairs().images).permute(0, 3, 1, 2)
    plan = quasi_random(TestTime(transforms=transforms), grader.params.augment)
    network, look = copy.deepcopy(network).cpu().eval(), grader.preprocess
    found = []
    with torch.inference_mode():
        for place in range(transforms):
            inputs = batch if transforms == 1 else apply(batch, repeated(plan, place, len(batch)), 32)
            inputs = normalise(inputs.float() / (255 if transforms == 1 else 1), look.mean, look.std)
            found.append(network(inputs.contiguous(memory_format=torch.channels_last)))
    return torch.stack(found).numpy()


def expected(name: str, grader: Grader, features: np.ndarray, transforms: int) -> np.ndarray:
    """Probabilities that follow from the mean features, or for trained networks from the mean outputs."""
    whole = grader.tensors().cpu()
    with torch.inference_mode():
        if name == "knn":
            return grader._votes(*grader.bank.nearest(features, grader.k))
        if name == "linear":
            return interpolated(whole.head(whole.scaled(torch.from_numpy(features)))[:, 0].numpy())
        if name == "fusion":
            both = np.concatenate([features, features[np.arange(8) ^ 1]], axis=1)
            return interpolated(whole["head"](torch.from_numpy(both)).numpy())
        outputs = by_hand(grader, whole, transforms).mean(axis=0)
        return whole.probabilities(torch.from_numpy(outputs)).numpy()


@pytest.mark.parametrize("name", ENCODED)
def test_predictions_are_from_means_over_the_transforms_of_test_time(name, tmp_path, monkeypatch):
    """Of finetune and its like the means of outputs, of graders on a frozen encoder those of features."""
    monkeypatch.chdir(tmp_path)
    grader = fitted(name, 4)
    output = grader.predict(pairs())
    each = by_hand(grader, module(grader), 4)
    assert each.std(axis=0).max() > 1e-3
    features = each.mean(axis=0)
    np.testing.assert_allclose(output.features[:, : features.shape[1]], features, atol=1e-4)
    np.testing.assert_allclose(output.probabilities, expected(name, grader, features, 4), atol=1e-4)
    grader.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.preprocess.test_time.transforms == 4
    np.testing.assert_array_equal(again.predict(pairs()).probabilities, output.probabilities)
    mean, std = again.moments(pairs(), quasi_random(TestTime(transforms=4), again.params.augment))
    np.testing.assert_allclose(mean, features, atol=1e-4)
    np.testing.assert_allclose(std, each.std(axis=0, ddof=1), atol=1e-4)


@pytest.mark.parametrize("name", ENCODED)
def test_a_single_transform_leaves_the_images_as_they_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader = fitted(name, 1)
    output = grader.predict(pairs())
    features = by_hand(grader, module(grader), 1)[0]
    np.testing.assert_array_equal(output.features[:, : features.shape[1]], features)
    np.testing.assert_allclose(output.probabilities, expected(name, grader, features, 1), atol=1e-6)
    mean, std = grader.moments(pairs(), None)
    np.testing.assert_array_equal(mean, features)
    assert (std == 0).all()


def test_a_grader_without_an_encoder_has_no_features():
    with pytest.raises(UserError, match=r"'majority' has no encoder .*; name another experiment"):
        Majority(Params(), Crop()).moments(pairs(), None)

"""The grader on cached features: what it fits, on which network's features, and what it predicts."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from tests.grading.conftest import Recorded

from drgrade.errors import UserError
from drgrade.evaluate.metrics import qwk, to_grades
from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.blend import Blend, Params
from drgrade.grading.feature_sets import FeatureSet
from drgrade.grading.models import load_model
from drgrade.params import Crop

PATIENTS = 40
QUICK = {"maxout": {"epochs": 30, "lr": 0.01, "batch_size": 16}, "fusion": {"epochs": 3}, "boosting": {}}
MODELS = ("maxout", "ridge", "boosting", "fusion")


def block(**changed) -> Params:
    return Params(**{"features": ["net"]} | QUICK.get(changed.get("model", "maxout"), {}) | changed)


def table() -> pd.DataFrame:
    """Both eyes of each patient have the same grade; the last ten patients are for validation."""
    count = 2 * PATIENTS
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(count)],
            "patient_id": [f"p{n // 2}" for n in range(count)],
            "eye": ["left", "right"] * PATIENTS,
            "grade": [n // 2 % 5 for n in range(count)],
        }
    )


def network(signs: np.ndarray, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy features (80, 4) of all photographs; the grade times ``signs`` (4,), and their deviations."""
    rng = np.random.default_rng(seed)
    grades = table()["grade"].to_numpy()[:, None]
    mean = grades * signs + noise * rng.normal(size=(len(grades), 4))
    return mean.astype(np.float32), rng.normal(size=mean.shape).astype(np.float32)


def cross_fitted(models: int, noise: float = 0.3, name: str = "net") -> FeatureSet:
    """A set of K networks with opposite features: network k has not seen every K-th training patient."""
    patient = np.arange(2 * PATIENTS) // 2
    rows, means, stds = [], [], []
    for model in range(models):
        mean, std = network(np.array([1, -1, 1, -1]) * (-1.0) ** model, noise, model)
        new = np.flatnonzero((patient % models == model) | (patient >= 30))
        start = sum(map(len, means))
        rows.append(
            pd.DataFrame(
                {
                    "dataset": "demo",
                    "image_id": [f"i{n}" for n in new],
                    "model": model,
                    "row": start + np.arange(len(new)),
                }
            )
        )
        means.append(mean[new])
        stds.append(std[new])
    return FeatureSet(name, models, models == 1, pd.concat(rows), np.vstack(means), np.vstack(stds))


def part(which: slice, *sets: FeatureSet) -> Photographs:
    return Photographs(None, table()[which], features={one.name: one for one in sets}, dataset="demo")


TRAIN, VAL = slice(0, 60), slice(60, None)


def fitted(params: Params, *sets: FeatureSet, seed: int = 0, val: slice = VAL) -> tuple[Blend, dict]:
    grader, run = Blend(params, Crop()), Recorded()
    job = Job(part(TRAIN, *sets), part(val, *sets), Start("random"), seed, "t", "", run)
    grader.fit(job)
    return grader, run.values


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("models", [1, 2])
def test_a_saved_model_predicts_as_before(tmp_path, model, models):
    one = cross_fitted(models)
    grader, recorded = fitted(block(model=model, repeats=1 if model == "ridge" else 2), one)
    shown = part(VAL, one)
    output = grader.predict(shown)
    assert output.features is None
    grader.save(tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_array_equal(again.predict(shown).probabilities, output.probabilities)
    found = qwk(shown.grades, to_grades(output.score))
    assert recorded["val_qwk"] == pytest.approx(found)
    assert recorded["val_mse"] == pytest.approx(np.mean((output.score - shown.grades) ** 2))
    facts = json.loads((tmp_path / "model.json").read_text())["facts"]
    assert (facts["models"], facts["features"]) == (models, 8)
    assert ("trees" in facts) == (model == "boosting")


@pytest.mark.parametrize("model", ["maxout", "ridge", "boosting"])
def test_features_of_different_networks_are_never_mixed(model):
    """Network 1's features mean the opposite of network 0's: one regressor for both would learn nothing."""
    _, recorded = fitted(block(model=model, std=False), cross_fitted(2))
    assert recorded["val_qwk"] > 0.75


def test_a_prediction_is_the_mean_of_the_networks():
    """New photographs have features of all three networks, training photographs those of one."""
    one = cross_fitted(3)
    grader, _ = fitted(block(model="ridge"), one)
    apart = []
    for model in range(3):
        rows = one.rows[one.rows["model"] == model]
        only = FeatureSet("net", 3, False, rows, one.mean, one.std)
        apart.append(grader.predict(part(VAL, only)).score)
    assert np.ptp(apart, axis=0).max() > 0.01
    inside = (np.array(apart) > 0).all(axis=0) & (np.array(apart) < 4).all(axis=0)  # not clipped
    assert inside.sum() > 5
    found = grader.predict(part(VAL, one)).score
    np.testing.assert_allclose(found[inside], np.mean(apart, axis=0)[inside])
    assert len(grader.predict(part(TRAIN, one)).score) == 60


def test_a_network_is_read_only_where_it_has_not_seen_the_patient():
    """The fit changes with features that network 0 gave to its own new patients; it has no others."""
    one = cross_fitted(2)
    grader, _ = fitted(block(model="ridge"), one)
    changed = FeatureSet("net", 2, False, one.rows, one.mean.copy(), one.std)
    trained = one.rows["image_id"].isin([f"i{n}" for n in range(60)])
    changed.mean[one.rows.loc[trained & (one.rows["model"] == 1), "row"].to_numpy(np.int64)] *= 3
    other, _ = fitted(block(model="ridge"), changed)
    state, changed_state = grader.tensors().state_dict(), other.tensors().state_dict()
    same = {key: torch.equal(state[key], changed_state[key]) for key in state}
    assert all(value for key, value in same.items() if key.startswith("0."))
    assert not same["1.scaler.mean"]
    assert not same["1.heads.0.linear.weight"]


def test_the_fellow_eye_helps():
    """A13: both eyes have one grade and noise of their own, so their mean has half the variance."""
    one = cross_fitted(1, noise=2)
    both = fitted(block(model="ridge", std=False), one)[1]["val_mse"]
    alone = fitted(block(model="ridge", std=False, per_patient=False), one)[1]["val_mse"]
    assert both < 0.85 * alone


@pytest.mark.parametrize(("std", "per_patient", "width"), [(1, 1, 17), (0, 1, 9), (1, 0, 8), (0, 0, 4)])
def test_switches_of_the_ablation(std, per_patient, width):
    grader, _ = fitted(block(model="ridge", std=bool(std), per_patient=bool(per_patient)), cross_fitted(1))
    assert grader.tensors()[0].heads[0].linear.in_features == width


def test_several_sets_are_one_input():
    first, second = cross_fitted(2), cross_fitted(2, name="other")
    grader, _ = fitted(block(model="ridge", features=["net", "other"]), first, second)
    assert grader.tensors()[0].heads[0].linear.in_features == 2 * 16 + 1


def test_the_scaler_sees_training_photographs_only():
    one = cross_fitted(1)
    grader, _ = fitted(block(model="ridge"), one)
    expected = np.hstack([one.mean, one.std])[TRAIN].mean(axis=0)
    np.testing.assert_allclose(grader.tensors()[0].scaler.mean.cpu(), expected, atol=1e-6)


def test_one_seed_gives_one_model_and_another_seed_another():
    one = cross_fitted(1)
    found = [fitted(block(epochs=2), one, seed=seed)[0].predict(part(VAL, one)).score for seed in (1, 1, 2)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


def test_repeats_differ_and_are_averaged():
    one = cross_fitted(1)
    once = fitted(block(epochs=2), one)[0].tensors().state_dict()
    twice = fitted(block(epochs=2, repeats=2), one)[0].tensors().state_dict()
    first, second = (twice[f"0.heads.{repeat}.first.weight"] for repeat in (0, 1))
    assert torch.equal(first, once["0.heads.0.first.weight"])
    assert not torch.equal(first, second)


def test_defaults_are_the_published_ones():
    params = Params(features=["net"])
    assert params.maxout()._asdict() == {
        "epochs": 100, "batch_size": 128, "lr": 5e-4, "balanced": 0.2, "uniform": 0.3,
        "l1": 2e-5, "l2": 0.005,
    }  # fmt: skip
    assert params.fusion()._asdict() == {
        "epochs": 50, "batch_size": 64, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4, "clip": 1.0,
    }  # fmt: skip
    changed = Params(features=["net"], epochs=7, batch_size=3, lr=0.5, leaves=4)
    assert changed.maxout()[:3] == changed.fusion()[:3] == (7, 3, 0.5)
    assert changed.boosting()._asdict() == {"trees": 7, "leaves": 4, "lr": 0.5, "feature_share": 0.2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": []}, "at least 1 item"),
        ({"balanced": 0.6, "uniform": 0.5}, "balanced \\+ uniform is 1.1; must be at most 1"),
        ({"model": "ridge", "repeats": 2}, "repeats: a ridge regression has no random numbers"),
    ],
)
def test_params_that_make_no_sense(values, message):
    with pytest.raises(ValidationError, match=message):
        Params(**{"features": ["net"]} | values)


def test_nothing_is_measured_without_validation():
    one = cross_fitted(1)
    grader, recorded = fitted(block(model="ridge"), one, val=slice(0, 0))
    assert recorded == {}
    assert grader.predict(part(slice(0, 0), one)).probabilities.shape == (0, 5)


def test_photographs_without_features_are_a_users_mistake():
    one = cross_fitted(2)
    grader, _ = fitted(block(model="ridge"), one)
    with pytest.raises(UserError, match="features net: not given for these photographs"):
        grader.predict(Photographs(None, table()))
    fewer = FeatureSet("net", 2, False, one.rows[one.rows["image_id"] != "i70"], one.mean, one.std)
    with pytest.raises(UserError, match="features net: no features of 1 photographs, such as i70"):
        grader.predict(part(VAL, fewer))
    elsewhere = Photographs(None, table()[VAL], features={"net": one}, dataset="other")
    with pytest.raises(UserError, match="no features of 20 photographs, such as i60"):
        grader.predict(elsewhere)


def test_sets_that_do_not_fit_together():
    first, second = cross_fitted(2), cross_fitted(3, name="other")
    with pytest.raises(UserError, match="equally many networks, not net of 2, other of 3"):
        fitted(block(features=["net", "other"]), first, second)
    empty = FeatureSet("net", 2, False, first.rows[first.rows["model"] == 0], first.mean, first.std)
    with pytest.raises(UserError, match="no training photograph has features of model 1 of 2"):
        fitted(block(model="ridge"), empty)

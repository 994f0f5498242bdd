"""The linear probe, against the least-squares optimum."""

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.errors import UserError
from drgrade.explain.cam import GradCam
from drgrade.grading import features as feature_module
from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.features import Frozen
from drgrade.grading.linear import Linear, Params
from drgrade.grading.losses import regression_head
from drgrade.grading.probe import Probe, regress
from drgrade.params import Crop
from drgrade.tracking import NullRun


def block(**changed) -> Params:
    return Params(encoder="test_efficientnet", input_size=32, **changed)


def toy(rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 3) and targets that no line fits exactly."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, 3))
    targets = features @ [0.7, -0.4, 0.2] + 1.8 + 0.3 * rng.normal(size=rows)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def test_training_ends_at_the_least_squares_optimum():
    features, targets = toy()
    head = regress(features, targets, regression_head(3), block(lr=[0.03], epochs=400), 0)[0.03]
    design = np.column_stack([features.numpy(), np.ones(len(features))])
    optimum = np.linalg.lstsq(design, targets.numpy(), rcond=None)[0]
    found = [*head.weight.detach().numpy()[0], head.bias.item()]
    np.testing.assert_allclose(found, optimum, atol=1e-3)


def test_weight_decay_shrinks_the_weights():
    """Adam's decay adds decay * w to the gradient: the optimum is a ridge regression, bias included."""
    features, targets = toy()
    settings = block(lr=[0.03], epochs=400, weight_decay=0.5)
    head = regress(features, targets, regression_head(3), settings, 0)[0.03]
    design = np.column_stack([features.numpy(), np.ones(40)]).astype(np.float64)
    ridge = np.linalg.solve(2 / 40 * design.T @ design + 0.5 * np.eye(4), 2 / 40 * design.T @ targets.numpy())
    np.testing.assert_allclose([*head.weight.detach().numpy()[0], head.bias.item()], ridge, atol=1e-3)


def test_the_learning_rate_falls_on_a_cosine_to_nothing():
    """Far from its target a unit that sees only zeros moves by the learning rate at every step of Adam."""
    settings = block(lr=[0.001], epochs=100)
    head = regress(torch.zeros(8, 3), torch.full((8,), 1e4), regression_head(3), settings, 0)[0.001]
    rates = [0.0005 * (1 + np.cos(np.pi * step / 100)) for step in range(100)]
    assert head.bias.item() - 1 == pytest.approx(sum(rates), rel=0.01)


def test_a_learning_rate_learns_beside_others_what_it_learns_alone():
    features, targets = toy()
    start = regression_head(3)
    together = regress(features, targets, start, block(lr=[0.001, 0.01, 0.1], epochs=3, batch_size=16), 5)
    for lr, head in together.items():
        alone = regress(features, targets, start, block(lr=[lr], epochs=3, batch_size=16), 5)[lr]
        assert torch.equal(head.weight, alone.weight)
        assert torch.equal(head.bias, alone.bias)
    other = regress(features, targets, start, block(lr=[0.1], epochs=3, batch_size=16), 6)[0.1]
    assert not torch.equal(other.weight, together[0.1].weight)  # the seed orders the batches


def test_features_are_centred_and_share_one_scale():
    probe = Probe(Frozen("test_efficientnet", "random", 32))
    rng = np.random.default_rng(0)
    found = (rng.normal(size=(50, 256)) * np.linspace(0.1, 9, 256) + 3).astype(np.float32)
    probe.adapt(found)
    scaled = probe.scaled(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    assert np.mean(scaled.var(axis=0)) == pytest.approx(1, abs=1e-5)
    ratio = scaled.std(axis=0) / found.std(axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    probe.adapt(found[:1])  # one photograph has no deviation
    np.testing.assert_array_equal(probe.scaled(torch.from_numpy(found[:1])).numpy(), 0)


@pytest.fixture
def fit(monkeypatch, fitted):
    """A grader fitted where the first feature is the grade and the rest are 0."""
    grades = np.arange(25) % 5
    points = np.zeros((25, 256), np.float32)
    points[:, 0] = grades
    monkeypatch.setattr(feature_module, "features", lambda frozen, images, rows: points[rows])
    table = pd.DataFrame({"grade": grades, "row": range(25)})

    def run(lr: list[float], val: range) -> tuple[Linear, dict[str, float]]:
        grader = Linear(block(lr=lr, epochs=60), Crop())
        recorded = fitted(grader, table.iloc[:15], table.iloc[val])
        with torch.inference_mode():
            scores = grader.network.head(grader.network.scaled(torch.from_numpy(points))).squeeze(1)
        return grader, recorded | {"mse": float(np.mean((scores.numpy() - grades) ** 2))}

    return run


def test_the_learning_rate_is_chosen_on_validation(fit):
    """At 1e-7 a head stays where it starts, at grade 1 for all; at 1e-2 and 3e-2 it nears the grade."""
    _, recorded = fit([1e-7, 0.1, 0.08], range(15, 25))
    assert recorded["lr"] == 0.08  # both are right in all grades: the smaller
    assert recorded["val_qwk"] == recorded["val_qwk_lr0.08"] == recorded["val_qwk_lr0.1"] == 1
    assert recorded["val_qwk_lr1e-07"] == 0
    assert recorded["mse"] < 0.05


def test_the_first_learning_rate_where_nothing_validates(fit):
    _, recorded = fit([1e-7, 0.1], range(0))
    assert set(recorded) == {"mse"}
    assert recorded["mse"] > 1
    assert fit([0.1, 1e-7], range(0))[1]["mse"] < 0.05


def test_one_seed_gives_one_model_and_another_seed_another():
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    part = Photographs(images, pd.DataFrame({"grade": np.arange(10) % 5, "row": range(10)}))
    found = []
    for seed in (1, 1, 2):
        grader = Linear(block(lr=[0.01], epochs=2, batch_size=4), Crop())
        grader.fit(Job(part, part, Start("random"), seed, "t", "", NullRun()))
        found.append(grader.predict(part).probabilities)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0


def test_its_network_is_explained_like_any_other():
    """64 pixels: the last feature map is 2x2. Nothing in the frozen encoder asks for gradients."""
    batch = torch.randn(2, 3, 64, 64)
    probe = Probe(Frozen("test_efficientnet", "random", 64, blocks=True))
    heat = GradCam().heat(probe, batch)
    assert heat.shape == (2, 64, 64)
    assert heat.max() > 0
    with pytest.raises(UserError, match="cam needs a convolutional network"):
        GradCam().heat(Probe(Frozen("test_vit", "random", 64, blocks=True)), batch)

"""The eye-pair fusion: a frozen encoder, views drawn for each eye, the best epoch."""

import numpy as np
import pandas as pd
import pytest
import torch
from tests.grading.conftest import Recorded

from drgrade.grading import features as feature_module
from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.features import Frozen
from drgrade.grading.fusion import Fusion, Params, augmented_features, drawn_pairs
from drgrade.grading.models import load_model
from drgrade.params import Crop
from drgrade.params.block import Augment


def block(**changed) -> Params:
    quick = {
        "encoder": "test_efficientnet",
        "input_size": 32,
        "hidden": [16, 8],
        "epochs": 2,
        "batch_size": 4,
    }
    return Params(**quick | changed)


def photographs(count: int = 10, start: int = 0) -> Photographs:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    rows = np.arange(start, start + count)
    table = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in rows],
            "patient_id": [f"p{n // 2}" for n in rows],
            "eye": [("left", "right")[n % 2] for n in rows],
            "grade": rows // 2 % 5,
            "row": rows,
        }
    )
    return Photographs(images, table)


def job(train: Photographs, val: Photographs, seed: int = 0, run=None) -> Job:
    return Job(train, val, Start("random"), seed, "t", "", run or Recorded())


@pytest.mark.parametrize("views", [1, 2])
def test_the_encoder_is_left_as_it_was(views, tmp_path):
    """Defect F1: weights and BatchNorm's buffers are the same bits after training and after saving."""
    from drgrade.seeding import seed_everything

    seed_everything(3, "head")
    before = Frozen("test_efficientnet", "random", 32).state_dict()
    assert any("running_mean" in key for key in before)
    grader = Fusion(block(views=views), Crop())
    grader.fit(job(photographs(), photographs(6, 10), seed=3))
    assert not grader.frozen.encoder.training
    after = grader.frozen.state_dict()
    assert all(torch.equal(after[key].cpu(), before[key]) for key in before)
    shown = photographs(6, 10)
    output = grader.predict(shown)
    assert output.probabilities.shape == (6, 5)
    grader.save(tmp_path)
    again = load_model(tmp_path).predict(shown)
    np.testing.assert_array_equal(again.probabilities, output.probabilities)


@pytest.fixture
def features(monkeypatch) -> np.ndarray:
    """Features (20, 256) in place of the encoder's."""
    found = np.random.default_rng(1).normal(size=(20, 256)).astype(np.float32)
    monkeypatch.setattr(feature_module, "features", lambda frozen, images, rows: found[rows])
    return found


def test_inputs_are_both_eyes(features):
    """Nine photographs: the last one has no fellow eye, and its own features stand in."""
    grader = Fusion(block(), Crop())
    grader.fit(job(photographs(), photographs(0)))
    output = grader.predict(photographs(9))
    other = [1, 0, 3, 2, 5, 4, 7, 6, 8]
    np.testing.assert_array_equal(output.features, np.hstack([features[:9], features[other]]))
    scores = grader.head(torch.from_numpy(output.features)).detach().numpy()
    np.testing.assert_allclose(output.score, np.clip(scores, 0, 4), atol=1e-6)


def test_new_photographs_of_unknown_eyes(features):
    grader = Fusion(block(), Crop())
    grader.fit(job(photographs(), photographs(0)))
    new = pd.DataFrame({"image_id": ["a.jpg"], "patient_id": None, "eye": None, "grade": pd.NA, "row": 5})
    output = grader.predict(Photographs(photographs().images, new))
    np.testing.assert_array_equal(output.features[0], [*features[5], *features[5]])
    assert grader.predict(photographs(0)).probabilities.shape == (0, 5)


def test_a_single_training_photograph(features):
    grader = Fusion(block(), Crop())
    grader.fit(job(photographs(1), photographs(0)))
    assert np.isfinite(grader.predict(photographs(3)).score).all()


def test_it_learns_from_the_fellow_eye(features):
    """The fellow eye's first feature is the grade; the own features are noise."""
    part = photographs(20)
    features[:, 0] = part.grades[np.arange(20) ^ 1]
    run = Recorded()
    grader = Fusion(block(hidden=[32, 16], epochs=60), Crop())
    grader.fit(job(part, part, run=run))
    assert np.mean((grader.predict(part).score - part.grades) ** 2) < 0.2


class Values(Recorded):
    """Keeps each epoch's measures."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []

    def metrics(self, values, step=0) -> None:
        assert step == len(self.epochs)
        self.epochs.append(values)


def test_the_best_epoch_is_kept(features):
    from drgrade.evaluate.metrics import qwk, to_grades

    train, val = photographs(10), photographs(10, 10)
    kept = {}
    for select in ("best", "last"):
        run = Values()
        grader = Fusion(block(epochs=12, lr=0.1, select=select), Crop())
        grader.fit(job(train, val, run=run))
        scores = grader.head(torch.from_numpy(grader.predict(val).features)).detach().double().numpy()
        kept[select] = qwk(val.grades, to_grades(scores)), [epoch["val_qwk"] for epoch in run.epochs]
        assert set(run.epochs[0]) == {"loss", "val_qwk", "val_mse"}
    assert kept["best"][1] == kept["last"][1]
    assert kept["best"][0] == pytest.approx(max(kept["best"][1]))
    assert kept["last"][0] == pytest.approx(kept["last"][1][-1])
    assert kept["best"][0] > kept["last"][0]


def test_without_validation_the_last_epoch_is_kept(features):
    run = Values()
    grader = Fusion(block(epochs=3), Crop())
    grader.fit(job(photographs(), photographs(0), run=run))
    assert [set(epoch) for epoch in run.epochs] == [{"loss"}] * 3


def test_views_are_drawn_independently_for_the_two_eyes():
    """Each feature is the number of its view and photograph, so inputs tell which were drawn."""
    views = torch.stack([torch.arange(20.0) + 100 * view for view in range(4)])[:, :, None]
    one = drawn_pairs(views, job(photographs(20), photographs(0)))
    items = np.arange(20)
    epochs = torch.stack([one(epoch, items) for epoch in range(200)]).long()  # (epochs, n, eye)
    assert (epochs % 100 == torch.stack([torch.arange(20), torch.arange(20) ^ 1], dim=1)).all()
    drawn = epochs // 100
    shares = torch.bincount((4 * drawn[..., 0] + drawn[..., 1]).flatten(), minlength=16) / 4000
    np.testing.assert_allclose(shares, 1 / 16, atol=0.02)
    assert torch.equal(one(7, items[5:8]), one(7, items)[5:8])  # whatever the batch
    other = drawn_pairs(views, job(photographs(20), photographs(0), seed=1))
    assert not torch.equal(other(7, items), one(7, items))


def test_augmented_features_are_those_of_the_augmented_photographs():
    from drgrade.images.augment import augment, normalise
    from drgrade.rng import derive_each

    frozen, part = Frozen("test_efficientnet", "random", 32), photographs(5, 3)
    settings = Augment(brightness=0.3).model_dump()
    found = augmented_features(frozen, part, settings, 4, 2)
    batch = torch.from_numpy(part.images[part.rows]).permute(0, 3, 1, 2)
    changed = augment(batch, settings, derive_each(np.arange(5), 4, "augment", 2), 32)
    with torch.inference_mode():
        expected = frozen.cpu()(normalise(changed, frozen.mean, frozen.std))
    np.testing.assert_allclose(found.cpu(), expected, atol=1e-5)
    assert not torch.equal(augmented_features(frozen, part, settings, 4, 1), found)


def test_views_but_the_first_are_augmented():
    part = photographs(4)
    grader = Fusion(block(views=3), Crop())
    grader.frozen = grader._frozen("random")
    views = grader._views(job(part, part)).cpu().numpy()
    assert views.shape == (3, 4, 256)
    np.testing.assert_array_equal(views[0], feature_module.features(grader.frozen, part.images, part.rows))
    assert np.abs(views[1] - views[0]).max() > 1e-3
    assert np.abs(views[2] - views[1]).max() > 1e-3


def test_one_seed_gives_one_model_and_another_seed_another():
    found = []
    for seed in (1, 1, 2):
        grader = Fusion(block(views=2), Crop())
        grader.fit(job(photographs(), photographs(0), seed=seed))
        found.append(grader.head.cpu()(torch.ones(1, 512)).item())
    assert found[0] == found[1] != found[2]


def test_published_defaults():
    from drgrade.grading.pair_heads import PairRecipe

    params = Params()
    assert {key: getattr(params, key) for key in PairRecipe._fields} == PairRecipe()._asdict()
    assert PairRecipe() == (50, 64, 0.02, 0.9, 5e-4, 1.0)
    assert params.hidden == [2048, 512]

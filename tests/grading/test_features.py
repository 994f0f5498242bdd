"""Features of frozen encoders, and what both probes that read them promise."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from drgrade import inference, schema
from drgrade.checkpoints import read_tensors
from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.grading import features as module
from drgrade.grading.base import GRADERS, Job, Photographs, Start
from drgrade.grading.features import Frozen, best, features
from drgrade.grading.models import load_model
from drgrade.grading.stage import Inputs, grade
from drgrade.params import Crop
from drgrade.tracking import NullRun
from drgrade.training import save_tensors

CONV, VIT = "test_efficientnet", "test_vit"
OWN = {"knn": {"k": [3]}, "linear": {"lr": [0.01], "epochs": 3, "batch_size": 4}, "ridge": {}}
PROBES = pytest.mark.parametrize("probe", list(OWN))


def pictures(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def table(rows) -> pd.DataFrame:
    return pd.DataFrame({"grade": [row % 5 for row in rows], "row": list(rows), "patient_id": None})


def normalised(images: np.ndarray, name: str) -> torch.Tensor:
    """Independently of the package: channels first, to the mean and deviation that timm states."""
    config = timm.get_pretrained_cfg(name)
    return torch.from_numpy((images / 255 - config.mean) / config.std).float().permute(0, 3, 1, 2)


def params(probe: str, **values):
    return GRADERS.get(probe).Params.model_validate(
        {"grader": probe, "encoder": CONV, "input_size": 32, **OWN[probe], **values}
    )


def shown(images, rows) -> Photographs:
    return Photographs(images, table(rows))


def fitted(probe: str, images, start: str, train, val, *, seed: int = 3, **values):
    grader = GRADERS.get(probe)(params(probe, **values), Crop())
    begin = Start(start) if start == "random" else Start("file", Path(start))
    grader.fit(Job(shown(images, train), shown(images, val), begin, seed, "t", "key", NullRun()))
    return grader


def tensors_of(grader, folder) -> dict[str, torch.Tensor]:
    grader.save(folder)
    return read_tensors(folder / "model.safetensors")


@pytest.fixture
def weights(tmp_path) -> str:
    """An encoder whose BatchNorm has seen other data than the photographs."""
    torch.manual_seed(1)
    model = timm.create_model(CONV, num_classes=0)
    for _ in range(30):
        model(torch.randn(8, 3, 32, 32))
    save_tensors(model.state_dict(), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


@pytest.mark.parametrize("count", [0, 1, 7])
def test_pooled_features_are_those_of_one_picture_at_a_time(weights, count, monkeypatch):
    monkeypatch.setattr(inference, "CPU_BATCH", 3)
    images, rows = pictures(9), np.array([8, 1, 1, 5, 0, 7, 2])[:count]
    found = features(Frozen(CONV, weights, 32, blocks=True), images, rows)
    model = timm.create_model(CONV, num_classes=0).eval()
    model.load_state_dict(read_tensors(Path(weights)))
    with torch.inference_mode():
        maps = [model.forward_features(normalised(images[[row]], CONV)) for row in rows]
    expected = [one.mean(dim=(2, 3))[0].numpy() for one in maps]
    assert found.shape == (count, 256)
    assert found.dtype == np.float32
    if count:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert found.std(axis=1).min() > 0


def block_tokens(frozen: Frozen, images: np.ndarray) -> list[torch.Tensor]:
    """Every block's tokens (n, 1 + patches, D) after the final norm, caught as they leave the block."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, tokens: seen.append(tokens))
        for block in frozen.encoder.blocks
    ]
    with torch.inference_mode():
        frozen.encoder.forward_features(normalised(images, VIT))
        for handle in handles:
            handle.remove()
        return [frozen.encoder.norm(tokens) for tokens in seen]


@pytest.mark.parametrize(("size", "patches"), [(32, 4), (48, 9)])
def test_a_transformer_is_read_by_its_class_tokens(size, patches, monkeypatch):
    images, rows = pictures(3, size), np.arange(3)
    torch.manual_seed(0)
    last = Frozen(VIT, "random", size)
    tokens = block_tokens(last, images)
    assert tokens[-1].shape == (3, 1 + patches, 64)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(features(last, images, rows), tokens[-1][:, 0], **close)

    four = Frozen(VIT, "random", size, blocks=True)
    four.load_state_dict(last.state_dict())
    expected = torch.cat([one[:, 0] for one in tokens[-4:]], dim=1)
    np.testing.assert_allclose(features(four, images, rows), expected, **close)

    monkeypatch.setattr(module, "WIDE", 64)
    wide = Frozen(VIT, "random", size, blocks=True)
    wide.load_state_dict(last.state_dict())
    expected = torch.cat([tokens[-1][:, 0], tokens[-1][:, 1:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(features(wide, images, rows), expected, **close)


def test_sizes_that_no_patch_divides_are_refused():
    with pytest.raises(UserError, match=r"^test_vit takes no images of 40 pixels"):
        Frozen(VIT, "random", 40)


def test_features_that_are_not_numbers_are_refused():
    frozen = Frozen(CONV, "random", 32)
    frozen.encoder.conv_stem.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="2 of 2 photographs"):
        features(frozen, pictures(2), np.arange(2))


def test_training_mode_is_refused():
    """The oracle is the bare encoder, whose statistics do move in training mode."""
    frozen, batch = Frozen(CONV, "random", 32), torch.randn(4, 3, 32, 32)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    torch.nn.Sequential(frozen).train()(batch)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    frozen.encoder.train()(batch)
    assert not all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_a_given_encoder_is_copied_as_it_is(weights):
    """In training mode, with gradients: neither changes, and what it learns later does not reach the copy."""
    encoder = create_encoder(CONV, weights)
    encoder(torch.randn(2, 3, 32, 32)).sum().backward()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    images, rows = pictures(3), np.arange(3)
    given, drawn = Frozen(CONV, encoder, 32), torch.get_rng_state()
    found = features(given, images, rows)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert encoder.training
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in encoder.parameters())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    with torch.no_grad():
        expected = encoder.eval()(normalised(images, CONV))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        encoder.conv_stem.weight.zero_()
    np.testing.assert_array_equal(features(given, images, rows), found)


def test_the_best_setting_is_the_smallest_of_equals_and_none_that_diverged():
    grades = np.array([0, 1, 2, 3, 4])
    right, near, wrong = grades + 0.2, np.array([0.0, 1, 2, 3, 3]), 4.0 - grades
    assert best({3: wrong, 2: right, 1: near, 0.5: right}, grades)[0] == 0.5
    setting, agreement = best({1: np.full(5, np.nan), 2: wrong}, grades)
    # 4 - grade: squared distances 16 4 0 4 16 = 40 against 100 / 5 * 1 expected by chance, so 1 - 2
    assert (setting, agreement) == (1, {1: -1.0, 2: pytest.approx(-1.0)})


@PROBES
def test_the_encoder_is_bit_identical_after_fit_and_predict(probe, weights, tmp_path):
    grader = fitted(probe, pictures(12), weights, range(8), [8, 9])
    grader.predict(shown(pictures(12), [10, 11]))
    found = tensors_of(grader, tmp_path / "model")
    for key, value in read_tensors(tmp_path / "start.safetensors").items():
        (own,) = [name for name in found if name.endswith(f"encoder.encoder.{key}")]
        assert torch.equal(found[own], value), key


@PROBES
def test_only_training_photographs_shape_the_model(probe, weights, tmp_path):
    images, train, val = pictures(12), [0, 2, 4, 5, 6, 8, 9], [1, 3]
    first = tensors_of(fitted(probe, images, weights, train, val), tmp_path / "first")
    elsewhere = images.copy()
    elsewhere[[1, 3, 7, 10, 11]] = pictures(5, seed=1)
    other = tensors_of(fitted(probe, elsewhere, weights, train, val), tmp_path / "other")
    assert all(torch.equal(value, other[key]) for key, value in first.items())
    elsewhere[4] = 255 - elsewhere[4]
    other = tensors_of(fitted(probe, elsewhere, weights, train, val), tmp_path / "other")
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@PROBES
@pytest.mark.parametrize("encoder", [CONV, VIT])
def test_a_loaded_model_predicts_the_same(probe, encoder, tmp_path):
    images = pictures(12, 48)
    grader = fitted(probe, images, "random", range(8), [8, 9], encoder=encoder)
    expected = grader.predict(shown(images, range(3, 12))).probabilities
    grader.save(tmp_path)
    found = load_model(tmp_path).predict(shown(images, range(3, 12))).probabilities
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found.shape == (9, 5)
    assert np.ptp(found, axis=0).max() > 0


@PROBES
def test_a_missing_weights_file_is_an_error(probe):
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such weights file"):
        fitted(probe, pictures(2), "nowhere.safetensors", [0], [1])


@PROBES
def test_the_stage_runs_and_its_model_is_found_again(probe, weights, dataset, tmp_path):
    data = dataset("own")
    experiment = params(probe, start=weights, seeds=[4])
    grade("e", experiment, Crop(), Inputs(data, start=Path(weights)), seed=4, fold=None, out=tmp_path / "out")
    about = json.loads((tmp_path / "out/training.json").read_text())
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert (about["seed"], about["start"]) == (4, {"weights": weights, "sha256": digest})
    tested = schema.read_table(tmp_path / "out/predictions.parquet", schema.PREDICTIONS)
    tested = tested.query("split == 'test'")
    assert tested["image_id"].tolist() == ["i8", "i9"]
    again = load_model(tmp_path / "out/model").predict(shown(data.images, [8, 9]))
    found = tested[[f"p{one}" for one in range(5)]].to_numpy(np.float64)
    np.testing.assert_allclose(found, again.probabilities, atol=1e-6)
    assert again.features.shape[0] == 2

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from tests.export.conftest import network
from tests.grading.test_finetune import MeanColours

from drgrade.errors import UserError
from drgrade.export import onnx as module
from drgrade.export.errors import UnsuitableError
from drgrade.export.onnx import Graph, difference, samples, write_onnx
from drgrade.grading.assembly import Assembly
from drgrade.grading.base import GRADERS, Photographs
from drgrade.grading.linear import Linear
from drgrade.grading.linear import Params as LinearParams
from drgrade.images.crop import crop_photograph
from drgrade.images.scaled import scale
from drgrade.params import Calibrate, Crop, Experiment
from drgrade.predict.model import Model
from drgrade.predict.source import unfitted


def model_of(*graders) -> Model:
    members = {f"seed{seed}": Assembly(grader, {}, []) for seed, grader in enumerate(graders)}
    return Model("net", members, unfitted("a test"), Calibrate())


def assert_same(folder, model, crops) -> None:
    """Outputs of each graph are the grader's own predictions, for batches of 1 and 5."""
    for label, member in model.members.items():
        session = onnxruntime.InferenceSession(folder / f"{label}.onnx")
        for size in (1, 5):
            some = crops[:size]
            rows = pd.DataFrame({"row": range(size)})
            expected = member.grader.predict(Photographs(some, rows))
            score, probabilities = session.run(["score", "probabilities"], {"crops": scale(some, 64)})
            np.testing.assert_allclose(score, expected.score, rtol=0, atol=1e-4)
            np.testing.assert_allclose(probabilities, expected.probabilities, rtol=0, atol=1e-4)


@pytest.fixture
def crops(idrid) -> np.ndarray:
    """Crops of five real photographs."""
    files = sorted(idrid.rglob("*.jpg"))[:5]
    found = np.stack([crop_photograph(file, Crop(size=96))[0] for file in files])
    assert len(np.unique(found)) > 100
    return found


def test_graphs_grade_real_photographs_as_the_model_does(crops, tmp_path):
    model = model_of(network())
    line = write_onnx(model, tmp_path / "onnx")
    assert line.startswith("seed0; opset 18; largest difference from torch ")
    assert_same(tmp_path / "onnx", model, crops)


def test_a_frozen_vision_transformer(tmp_path):
    grader = Linear(LinearParams(encoder="test_vit", input_size=64), Crop(size=96))
    grader.network = grader._probe("random")
    torch.nn.init.normal_(grader.network.head.weight, std=0.3)
    write_onnx(model_of(grader), tmp_path / "onnx")
    assert_same(tmp_path / "onnx", model_of(grader), samples(96))


@pytest.mark.parametrize("loss", ["cross_entropy", "coral", "corn"])
def test_outputs_of_every_kind_of_loss(loss, tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.encoders.create_encoder", lambda *_: MeanColours())
    model = model_of(*(network(loss=loss, seed=seed) for seed in range(2 if loss == "corn" else 1)))
    write_onnx(model, tmp_path / "onnx")
    assert_same(tmp_path / "onnx", model, samples(96))


@pytest.fixture
def colours(monkeypatch):
    """The smallest of networks."""
    monkeypatch.setattr("drgrade.encoders.create_encoder", lambda *_: MeanColours())
    return network()


def test_a_difference_is_found_and_refused(colours, tmp_path, monkeypatch):
    graph = Graph.of(colours)
    module._write(graph, samples(64), tmp_path / "a.onnx")
    assert difference(graph, tmp_path / "a.onnx", samples(64)) < 1e-5
    with torch.no_grad():
        graph.network.head.bias += 0.25
    assert difference(graph, tmp_path / "a.onnx", samples(64)) == pytest.approx(0.25, abs=1e-4)
    for wrong in (0.01, float("nan")):
        monkeypatch.setattr(module, "difference", lambda *_, wrong=wrong: wrong)
        with pytest.raises(UserError, match=f"differs from torch by {wrong}, more than 0.0001") as error:
            write_onnx(model_of(colours), tmp_path / f"{wrong}")
        assert not isinstance(error.value, UnsuitableError)


def test_preprocessing_is_described(colours, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_write", lambda *_: None)
    monkeypatch.setattr(module, "difference", lambda *_: 0.0)
    write_onnx(model_of(colours, colours), tmp_path / "one")
    about = json.loads((tmp_path / "one/preprocessing.json").read_text())
    assert about["graphs"] == ["seed0.onnx", "seed1.onnx"]
    assert about["crop"] == Crop(size=96).model_dump()
    assert about["input"]["shape"] == ["batch", 64, 64, 3]
    assert about["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert not caplog.messages
    averaged = network(test_time={"transforms": 4})
    write_onnx(model_of(averaged), tmp_path / "averaged")
    assert "means over 4 transforms" in caplog.text


def test_what_is_no_network_is_left_out(tmp_path):
    grader = GRADERS.get("majority")(Experiment(grader="majority"), Crop())
    with pytest.raises(UnsuitableError, match="the grader majority has no network that grades by itself"):
        write_onnx(model_of(grader), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


class Untraceable(MeanColours):
    def forward(self, batch):
        return super().forward(batch) if float(batch.sum()) > 0 else batch.mean(dim=(2, 3))


def test_a_network_that_onnx_cannot_express_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("drgrade.encoders.create_encoder", lambda *_: Untraceable())
    with pytest.raises(UnsuitableError, match="cannot be written as ONNX"):
        write_onnx(model_of(network()), tmp_path / "onnx")

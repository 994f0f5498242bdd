"""Trainings of three phases: metrics, resuming, what stays fixed, which epoch is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.grading.deepmt_examples import same, settings, state, trained
from torch import Tensor

from drgrade.grading import deepmt_phases, deepmt_training
from drgrade.grading.deepmt import DeepMT
from drgrade.tracking import NullRun
from drgrade.training import CHECKPOINTS


class Stopping(NullRun):
    """Keeps metrics by name, and stops a training when it reports a certain one for the second time."""

    def __init__(self, stop: str = "") -> None:
        super().__init__()
        self.stop, self.values = stop, {}

    def metrics(self, values: Any, step: int = 0) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        if self.stop in values and step == 1:
            raise InterruptedError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepMT, dict[str, list[float]]]:
    """A training without interruption, and its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        run = Stopping()
        grader = trained(run)
        assert not list(CHECKPOINTS.glob("*"))
    return grader, run.values


def test_each_phase_reports_its_losses_its_gate_and_its_memory(finished):
    _, values = finished
    assert all(len(found) == 2 for found in values.values())
    assert np.isfinite(list(values.values())).all()
    for prefix, names in {
        "restoration_": ["image", "variation", "segmentation", "segmentation_aware"],
        "grading_": ["grade"],
        "": ["image", "variation", "segmentation", "segmentation_aware", "grading_aware", "pseudo", "grade"],
    }.items():
        own = {key.removeprefix(f"{prefix}loss_") for key in values if key.startswith(f"{prefix}loss_")}
        assert own == set(names)
        assert min(values[f"{prefix}peak_memory_gb"]) > 0
    assert {"restoration_val_psnr", "restoration_val_psnr_bicubic", "grading_val_qwk", "val_qwk"} <= set(
        values
    )


@pytest.mark.parametrize("stop", ["restoration_loss", "grading_loss", "loss"])
def test_a_training_that_was_stopped_in_any_phase_ends_the_same(stop, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptedError):
        trained(Stopping(stop))
    began: list[str] = []
    fit = deepmt_training.fit
    monkeypatch.setattr(
        deepmt_training, "fit", lambda module, **given: (began.append(module.name), fit(module, **given))
    )
    resumed = Stopping()
    assert same(state(trained(resumed)), state(finished[0]))
    order = ["restoration_loss", "grading_loss", "loss"]
    assert [f"{name}_loss".removeprefix("joint_") for name in began] == order[order.index(stop) :]
    assert len(resumed.values[stop]) == 1  # of two epochs; earlier phases are not trained again
    assert not list(CHECKPOINTS.glob("*"))


def test_other_inputs_are_another_training(finished, tmp_path, monkeypatch):
    """What a stopped training left is not used if anything has changed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptedError):
        trained(Stopping("grading_loss"), key="other")
    run = Stopping("restoration_loss")
    with pytest.raises(InterruptedError):
        trained(run)
    assert len(run.values["restoration_loss"]) == 2


def test_the_teacher_follows_slowly(tmp_path, monkeypatch):
    """After each step of the joint phase it moves by a tenth of the way."""
    monkeypatch.chdir(tmp_path)
    steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    follow = deepmt_phases.Joint.on_train_batch_end

    def recorded(self: Any, *given: Any) -> None:
        before = {key: value.clone() for key, value in self.teacher.state_dict().items()}
        follow(self, *given)
        own = self.network.state_dict()
        expected = {
            key: 0.9 * before[key] + 0.1 * own[key] if value.is_floating_point() else value
            for key, value in before.items()
        }
        steps.append((expected, {key: value.clone() for key, value in self.teacher.state_dict().items()}))

    monkeypatch.setattr(deepmt_phases.Joint, "on_train_batch_end", recorded)
    short = {name: {"epochs": 1, "batch_size": 2, "lr": 1e-3} for name in ("restoration", "grading", "joint")}
    trained(params=settings(pseudo_masks={"teacher_decay": 0.9}, **short))
    assert len(steps) == 2
    for expected, found in steps:
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


def test_fixed_networks_stay_as_they_are(tmp_path, monkeypatch):
    """Also the running statistics of their BatchNorm; where both are none, grading is the first phase."""
    monkeypatch.chdir(tmp_path)
    states: dict[str, dict[str, Tensor]] = {}
    finish = deepmt_phases.Phase.finish

    def kept(self: Any) -> None:
        states[self.name] = {key: value.clone() for key, value in self.network.state_dict().items()}
        finish(self)

    monkeypatch.setattr(deepmt_phases.Phase, "finish", kept)
    monkeypatch.setattr(deepmt_phases.Graded, "finish", kept)
    short = {name: {"epochs": 1, "batch_size": 2, "lr": 1e-3} for name in ("restoration", "grading", "joint")}
    grader = trained(params=settings(super_resolution="fixed", segmentation="fixed", select="last", **short))
    end = state(grader)
    for key, value in states["restoration"].items():
        fixed = key.startswith(("encoder.restore", "encoder.segment"))
        assert torch.equal(value, end[key]) or not fixed, key
    assert any(not torch.equal(states["grading"][key], end[key]) for key in end if "encoder.encoder" in key)
    states.clear()
    trained(params=settings(super_resolution="none", segmentation="none", select="last", **short), val=())
    assert list(states) == ["grading", "joint"]


def best(
    qwks: list[float], select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], bool]:
    """Train with told QWKs; says whether the grader holds the weights after an epoch of the joint phase."""
    told, after = iter(qwks), []
    monkeypatch.setattr(deepmt_phases, "qwk", lambda *_: next(told))
    validate = deepmt_phases.Joint.validate

    def kept(self: Any) -> dict[str, float]:
        after.append({key: value.clone() for key, value in self.network.state_dict().items()})
        return validate(self)

    monkeypatch.setattr(deepmt_phases.Joint, "validate", kept)
    grader = trained(params=settings(select=select, super_resolution="none", segmentation="none"))
    return lambda epoch: same(state(grader), after[epoch])


@pytest.mark.parametrize(
    ("select", "qwks", "epoch"),
    [("best", [0.4, 0.1, 0.4, 0.5, 0.3], 0), ("last", [0.4, 0.1, 0.5, 0.3], 1)],
)
def test_the_selected_epoch_is_kept(select, qwks, epoch, tmp_path, monkeypatch):
    """Two epochs of grading, two of the joint phase, whose first is the better one."""
    monkeypatch.chdir(tmp_path)
    holds = best(qwks, select, tmp_path, monkeypatch)
    assert holds(epoch)
    assert not holds(1 - epoch)


def test_a_joint_phase_that_makes_it_worse_is_not_kept(tmp_path, monkeypatch):
    """The third QWK is measured before the joint phase, of the better of two epochs of grading."""
    monkeypatch.chdir(tmp_path)
    holds = best([0.9, 0.1, 0.9, 0.5, 0.3], "best", tmp_path, monkeypatch)
    assert not holds(0)
    assert not holds(1)

"""The phases: what each trains, by which losses; the ablations."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.grading.deepmt_examples import phase, settings
from torch import Tensor

from drgrade.grading import deepmt_losses as losses
from drgrade.grading.deepmt import Params
from drgrade.grading.deepmt_phases import Grading, Joint, Restoration
from drgrade.params import load

ROOT = Path(__file__).parents[2]


PAIRS = np.array([[0, 0], [1, 1], [3, 2]])


def reached(made: Any) -> dict[str, set[str]]:
    """The networks that get a gradient from each loss."""
    encoder, found = made.network.encoder, {}
    own, aware, restored = made.terms(made.reader.read(PAIRS, epoch=0))
    terms = own | {name: losses.only_through(restored, term) for name, term in aware.items()}
    parts = {"restore": encoder.restore, "segment": encoder.segment, "grade": encoder.encoder}
    for name, term in terms.items():
        made.network.zero_grad()
        if term.requires_grad:
            term.backward(retain_graph=True)
        grads = {key: [one.grad for one in part.parameters()] for key, part in parts.items()}
        found[name] = {key for key, own in grads.items() if any(one is not None and one.any() for one in own)}
    return found


def test_each_loss_reaches_the_networks_it_should():
    """The stem's weights for lesions are 0 at first: until then the grade does not teach segmentation."""
    made = phase(Joint)
    found = reached(made)
    found.pop("grading_aware")  # evidence may not depend on what still is 0
    assert found == {
        "image": {"restore"},
        "variation": {"restore"},
        "segmentation": {"restore", "segment"},
        "segmentation_aware": {"restore"},
        "pseudo": {"restore", "segment"},
        "grade": {"restore", "grade"},
    }


def some_steps_on(made: Any) -> Any:
    """Weights that are 0 at first have changed."""
    encoder = made.network.encoder
    stem = next(module for module in encoder.encoder.modules() if isinstance(module, torch.nn.Conv2d))
    for weight in (stem.weight, encoder.restore.last.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.parametrize("half", [False, True])
def test_evidence_teaches_super_resolution(half):
    """In single and in mixed precision."""
    made = some_steps_on(phase(Joint))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = reached(made)
    assert found["grading_aware"] == found["segmentation_aware"] == {"restore"}
    assert found["grade"] == {"restore", "segment", "grade"}


def test_a_step_has_the_weighted_sum_of_all_losses():
    made = phase(Joint, settings(loss_weights={"grade": 3.0, "grading_aware": 7.0, "pseudo": 0.0}))
    sample = made.reader.read(PAIRS, epoch=0)
    torch.manual_seed(1)
    terms = made.terms(sample)
    weights = {
        "image": 1, "variation": 1e-6, "segmentation": 1, "segmentation_aware": 1, "grading_aware": 7,
        "grade": 3, "pseudo": 0,
    }  # fmt: skip
    expected = sum(weights[name] * term.item() for name, term in (terms.own | terms.aware).items())
    torch.manual_seed(1)  # dropout
    assert made.training_step(sample, 0).item() == pytest.approx(expected, rel=1e-5)


def gradients(made: Any) -> dict[str, Tensor]:
    """Of one step with all losses."""
    torch.manual_seed(1)  # dropout
    made.training_step(made.reader.read(PAIRS, epoch=0), 0).backward()
    return {name: one.grad for name, one in made.network.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kind", [Restoration, Joint])
def test_checkpointing_changes_no_gradient_of_a_step(kind):
    found, expected = (
        gradients(some_steps_on(phase(kind, settings(checkpointing=checkpointing))))
        for checkpointing in (True, False)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", [Restoration, Grading, Joint])
def test_a_step_in_bfloat16_is_close_to_one_in_float32(kind):
    """Every loss, with finite gradients. Evidence above the threshold may change in some pixels."""
    found = []
    for half in (False, True):
        made = phase(kind)
        items = PAIRS if made.with_drawn else PAIRS[:, 0]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = made.training_step(made.reader.read(items, epoch=0), 0)
        loss.backward()
        grads = [one.grad for one in made.network.parameters() if one.grad is not None]
        assert all(one.isfinite().all() for one in grads)
        found.append({name: float(values[0]) for name, values in made.values.items()})
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=0.02)


def test_a_hard_threshold_teaches_nothing():
    assert reached(some_steps_on(phase(Joint, settings(softness=None))))["grading_aware"] == set()


def test_the_weight_of_pseudo_masks_rises(monkeypatch):
    made = phase(Joint, settings(pseudo_masks={"ramp_epochs": 3}))
    weights = []
    for epoch in range(5):
        monkeypatch.setattr(Joint, "current_epoch", epoch)
        weights.append(made.weights()["pseudo"])
    assert weights == [0.25, 0.5, 0.75, 1, 1]
    assert made.weights()["segmentation_aware"] == 1


TASKS = ("none", "fixed", "joint")


@pytest.mark.parametrize(("restore", "segment"), product(TASKS, TASKS))
def test_ablations_say_what_each_phase_trains(restore, segment):
    for kind, trains in (
        (Restoration, {"fixed", "joint"}),
        (Grading, set()),
        (Joint, {"joint"}),
    ):
        made = phase(kind, settings(super_resolution=restore, segmentation=segment))
        encoder, parts = made.network.encoder, made.trained()
        assert any(part is encoder.restore for part in parts) == (restore in trains)
        assert any(part is encoder.segment for part in parts) == (segment in trains)
        assert any(part is encoder.encoder for part in parts) == (kind is not Restoration)


AWARE = ("none", "segmentation", "grading", "both")
GRID = [*product(("joint",), TASKS, AWARE), *product(("none", "fixed"), TASKS, ("both",))]


@pytest.mark.parametrize(("restore", "segment", "aware"), GRID)
def test_ablations_say_which_losses_there_are(restore, segment, aware):
    made = phase(Joint, settings(super_resolution=restore, segmentation=segment, task_aware=aware))
    expected = {"grade"}
    expected |= {"segmentation", "pseudo"} if segment == "joint" else set()
    if restore == "joint":
        expected |= {"image", "variation"}
        expected |= (
            {"segmentation_aware"} if aware in ("segmentation", "both") and segment != "none" else set()
        )
        expected |= {"grading_aware"} if aware in ("grading", "both") else set()
    terms = made.terms(made.reader.read(PAIRS[:2], epoch=0))
    assert (terms.own | terms.aware).keys() == expected
    assert all(name.endswith("aware") for name in terms.aware)


def losses_of(params: Params) -> set[tuple[str, str]]:
    """The losses of both phases that may train super-resolution."""
    phases = [made for made in (phase(Restoration, params), phase(Joint, params)) if made.trained()]
    terms = {made.name: made.terms(made.reader.read(PAIRS[:1], epoch=0)) for made in phases}
    return {(name, loss) for name, found in terms.items() for loss in found.own | found.aware}


def test_the_committed_ablation_has_each_different_training_of_the_grid_once():
    """A combination that is left out has networks and losses of a row."""
    experiments = load(ROOT / "params/deepmt_ablation.yaml").experiments
    rows = {
        name: (row.super_resolution, row.segmentation, row.task_aware)
        for name, row in experiments.items()
        if isinstance(row, Params)
    }
    assert ["_".join(row) for row in rows.values()] == list(rows)
    different = {}
    for restore, segment, aware in product(TASKS, TASKS, AWARE):
        params = settings(
            super_resolution=restore, segmentation=segment, task_aware=aware, pseudo_masks={"use": False}
        )
        training = restore, segment, frozenset(losses_of(params))
        different.setdefault(training, []).append((restore, segment, aware))
    assert len(rows) == len(different)
    assert all(len(set(same) & set(rows.values())) == 1 for same in different.values())

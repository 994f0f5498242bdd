"""Losses against arithmetic; the three phases: what each trains, resuming, saving, the ablations."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS
from drgrade.grading import deepmt_losses as losses
from drgrade.grading import deepmt_phases as phases
from drgrade.grading.base import GRADERS, Grader, Job, Photographs, Start
from drgrade.grading.deepmt import DeepMT, Params
from drgrade.grading.deepmt_network import DeepMTNetwork, new_network
from drgrade.grading.models import load_model
from drgrade.lesions.mask_store import BITS, Masks
from drgrade.params import Crop, Grade
from drgrade.tracking import NullRun
from drgrade.training import CHECKPOINTS, Batches

SIDE = 64
"""Side of crops; low-resolution images have half of it."""


def test_the_published_loss_of_the_grade():
    """-(|k - l| / sum_i (|i - l| + 1)) log p_l, photograph by photograph; 0 for a correct grade k = l."""
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for grade, denominator in zip(range(5), (15, 12, 11, 12, 15), strict=True):
        for row in logits:
            wrong_by = abs(int(row.argmax()) - grade)
            log_p = float(row[grade] - row.exp().sum().log())
            for name, margin in (("published_distance", 0), ("distance", 1)):
                loss = losses.KINDS[name]().loss(row[None], torch.tensor([grade]))
                assert loss.item() == pytest.approx(-(wrong_by + margin) / denominator * log_p, abs=1e-12)


def test_a_correct_grade_teaches_confidence_unless_as_published():
    logits, grades = torch.tensor([[0.0, 0.1, 0, 0, 0]], requires_grad=True), torch.tensor([1])
    losses.KINDS["published_distance"]().loss(logits, grades).backward()
    assert not logits.grad.any()
    losses.KINDS["distance"]().loss(logits, grades).backward()
    assert logits.grad[0, 1] < 0


def test_class_weights_make_a_weighted_mean():
    logits, grades = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])
    criterion = losses.KINDS["distance"]()
    first, second = (criterion.loss(logits[n : n + 1], grades[n : n + 1]) for n in (0, 1))
    found = criterion.loss(logits, grades, torch.tensor([1.0, 9, 9, 3, 9]))
    torch.testing.assert_close(found, (first + 3 * second) / 4)


def lesions(seed: int = 0) -> Tensor:
    return (torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.2).float()


def test_dice_of_a_perfect_mask_is_no_loss():
    masks, all_kinds = lesions(), torch.ones(2, 4)
    masks[0, 1] = 0  # none of this kind
    assert losses.dice_loss(masks, masks, all_kinds).item() == 0
    assert losses.dice_loss(torch.zeros_like(masks), masks, all_kinds) > 0.8


def test_dice_is_of_each_kind_in_each_image():
    probabilities, masks = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), lesions()
    p, m = probabilities.numpy(), masks.numpy()
    each = [
        1 - (2 * (p[n, k] * m[n, k]).sum() + 1) / (p[n, k].sum() + m[n, k].sum() + 1)
        for n, k in ((0, 0), (0, 2), (1, 3))
    ]
    annotated = torch.zeros(2, 4)
    annotated[[0, 0, 1], [0, 2, 3]] = 1
    found = losses.dice_loss(probabilities, masks, annotated)
    assert found.item() == pytest.approx(np.mean(each), abs=1e-6)
    assert losses.dice_loss(probabilities, masks, torch.zeros(2, 4)).item() == 0


@given(st.integers(1, 20))
def test_a_pixel_of_a_lesion_should_be_certain(pixels):
    """Evaluated for each pixel, as in the published code, the minimum is at a probability of 0.73."""
    masks = torch.zeros(1, 1, 5, 5)
    masks.view(-1)[:pixels] = 1
    chances = torch.linspace(0, 1, 101)
    found = [float(losses.dice_loss(chance * masks, masks, torch.ones(1, 1))) for chance in chances]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_total_variation_and_image_loss():
    images = np.random.default_rng(0).random((2, 3, 5, 6))
    batch = torch.from_numpy(images)
    expected = sum((np.diff(images, axis=axis) ** 2).sum() for axis in (2, 3)) / 2
    assert losses.total_variation(batch).item() == pytest.approx(expected, rel=1e-5)
    assert losses.image_loss(batch + 0.25, batch).item() == pytest.approx(0.25, rel=1e-5)


def test_pseudo_masks_are_of_any_lesion():
    probabilities = torch.tensor([0.5, 0.5, 0.0, 0.2]).view(1, 4, 1, 1)
    found = losses.pseudo_mask_loss(probabilities, torch.ones(1, 1, 1))
    assert found.item() == pytest.approx((0.5 * 0.5 * 0.8) ** 2)


def test_a_soft_threshold_has_a_gradient_and_a_hard_one_has_none():
    evidence = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0], requires_grad=True)
    hard = losses.above(evidence, 0.5, None)
    assert hard.tolist() == [0, 0, 0, 1, 1]
    assert not hard.requires_grad
    soft = losses.above(evidence, 0.5, 0.1)
    np.testing.assert_allclose(soft.tolist(), 1 / (1 + np.exp([5, 1, 0, -1, -5])), rtol=1e-4)
    soft.sum().backward()
    assert (evidence.grad > 0).all()


def test_sizes_are_the_published_ones_unless_set():
    assert [(Params(scale=scale).input_size, Params(scale=scale).high_size) for scale in (2, 4, 8)] == [
        (512, 1024), (256, 1024), (128, 1024),
    ]  # fmt: skip
    assert Params().over(Grade(input_size=64)).input_size == 256
    assert Params(input_size=64).over(Grade()).high_size == 256
    with pytest.raises(ValidationError, match="input_size times scale must be a multiple of 16, not 132"):
        Params(input_size=33)


def test_published_weights_are_defaults():
    weights = Params().loss_weights.model_dump()
    assert weights.pop("pseudo") == 0.1
    assert weights == {
        "image": 1, "variation": 1e-6, "segmentation": 1, "segmentation_aware": 10,
        "joint_segmentation_aware": 1, "grading_aware": 10, "grade": 1,
    }  # fmt: skip
    params = Params()
    assert (params.restoration.lr, params.grading.lr, params.joint.lr) == (1e-4, 1e-4, 5e-5)
    assert Params(joint={"epochs": 3}).joint.lr == 5e-5  # the other keys keep their defaults


def test_crops_are_the_high_resolution_images():
    with pytest.raises(
        UserError, match=r"^input_size: 256 times scale 4 is 1024, but crop\.size is 512; set"
    ):
        DeepMT(Params(), Crop(size=512))


def settings(**changed: Any) -> Params:
    values: dict[str, Any] = {
        "encoder": "test_resnet", "start": "random", "input_size": SIDE // 2, "scale": 2, "hidden": 8,
        "super_resolution_width": 2, "super_resolution_blocks": 1, "segmentation_width": 2,
        "grids": [2, 1], "loss_weights": {"pseudo": 1.0},
        **{phase.name: {"epochs": 2, "batch_size": 2, "lr": 1e-3} for phase in phases.PHASES},
    }  # fmt: skip
    return Params(**values | changed)


def table(rows: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"i{row}" for row in rows], "grade": [row % 5 for row in rows]}).assign(
        row=rows
    )


def job(run: Any = None, val: tuple[int, ...] = (4, 5, 6), count: int = 4, key: str = "key") -> Job:
    """Graded photographs 0 to ``count`` - 1; ``val`` to validate on; 7 to 9 with the lesions that are red."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    drawn = (images[7:, ..., 0] > 200) * np.uint8(BITS["MA"] | BITS["EX"])
    masks = Masks(drawn, np.arange(3), np.array([15, BITS["MA"], 15], np.uint8))
    parts = [Photographs(images, table(list(rows))) for rows in (range(count), val)]
    return Job(
        *parts, Start("random"), 3, "t", key, run or NullRun(),
        masked=Photographs(images, table([7, 8, 9]), masks=masks),
    )  # fmt: skip


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


def trained(run: Any = None, params: Params | None = None, **options: Any) -> DeepMT:
    grader = DeepMT(params or settings(), Crop(size=SIDE))
    grader.fit(job(run, **options))
    return grader


def state(grader: Grader) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in grader.tensors().state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
    fit = phases.fit
    monkeypatch.setattr(
        phases, "fit", lambda module, **given: (began.append(module.name), fit(module, **given))
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


def test_a_saved_model_predicts_from_crops_alone(finished, tmp_path):
    grader, _ = finished
    grader.save(tmp_path)
    loaded = load_model(tmp_path)
    assert same(state(loaded), state(grader))
    new = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    shown = Photographs(new, pd.DataFrame({"row": range(3)}))
    output = loaded.predict(shown)
    assert output.features.shape == (3, 8)
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(output.probabilities, grader.predict(shown).probabilities)
    low = loaded.preprocess.normalised(torch.from_numpy(loaded.preprocess.scaled(new)[:]).permute(0, 3, 1, 2))
    assert low.shape[-1] == SIDE // 2
    assert (low.min() >= 0) & (low.max() <= 1)
    with torch.no_grad():
        expected = loaded.network.cpu()(low).softmax(dim=1)
    np.testing.assert_allclose(output.probabilities, expected, atol=1e-5)
    means, deviations = loaded.moments(shown, None)
    np.testing.assert_allclose(means, output.features, atol=1e-6)
    assert not deviations.any()


def test_a_model_with_a_missing_tensor_is_refused(finished, tmp_path):
    grader, _ = finished
    grader.save(tmp_path)
    other = DeepMT(settings(hidden=9), Crop(size=SIDE))
    other.network = other.new_network("random")
    other.save(tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors: not the tensors of"):
        load_model(tmp_path)


@pytest.mark.parametrize("method", ["cam", "gmsv"])
@pytest.mark.parametrize("loss", ["distance", "mse"])
def test_heat_maps(method, loss):
    """They cover the low-resolution image. What speaks against a grade speaks for it when signs change."""
    torch.manual_seed(0)
    grader = DeepMT(settings(grade_loss=loss), Crop(size=SIDE))
    grader.network = grader.new_network("random")
    explained = grader.explainable()
    batch = torch.rand(2, 3, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    assert explained.network(batch).shape == ((2, 5) if loss == "distance" else (2,))
    heats = []
    for _ in range(2):
        heats.append(EXPLAINERS.get(method)().heat(explained.network, batch))
        grader.network.head.weight.data.neg_()
    assert np.shape(heats) == (2, 2, SIDE // 2, SIDE // 2)
    assert np.min(heats) >= 0
    assert (np.max(heats, axis=(0, 2, 3)) > 0.8).all()
    assert all(parameter.grad is None for parameter in grader.network.encoder.restore.parameters())


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(0, 3))
def test_pairs(graded, drawn, size, epoch):
    """Graded photographs come in the usual order; those with lesions equally often."""
    found = phases.pairs(graded, drawn, size, 7, epoch)
    usual = Batches(graded, size, 7, epoch)
    assert [pair[:, 0].tolist() for pair in found] == [batch.tolist() for batch in usual]
    others = np.concatenate(found)[:, 1]
    counts = np.bincount(others, minlength=drawn)
    assert len(counts) == drawn
    assert counts.max() - counts.min() <= 1


def phase(kind: type[phases.Phase], params: Params | None = None, **options: Any) -> Any:
    """A phase as ``train`` begins it, with nothing trained yet."""
    torch.manual_seed(0)
    params = params or settings()
    network = new_network(params, "random")
    made = kind(network, params, job(**options))
    network.requires_grad_(False)
    for part in made.trained():
        part.requires_grad_(True)
    made.set_modes()
    return made


def test_masks_move_with_their_photographs():
    """Photographs that are masks: after augmentation both still agree, but at borders."""
    made = phase(phases.Joint)
    masks = made.drawn.masks
    red = np.repeat(((masks.array & BITS["EX"]) > 0)[..., None] * np.uint8(255), 3, axis=3)
    made.drawn = Photographs(red, made.drawn.table.assign(row=[0, 1, 2]), masks=masks)
    made.augment = made.augment | {"brightness": 0.0, "contrast": 0.0}
    places = np.array([[0, 0], [1, 1], [2, 2]])
    sample = made.prepare(places, epoch=0)
    found, annotated = made.masks(sample)
    image = made.in_high_resolution(sample.drawn)[:, 0]
    assert (found[:, 2] == (image >= 0.5)).float().mean() > 0.999
    assert torch.equal(found[:, 0], found[:, 2])
    assert not found[:, [1, 3]].any()
    assert annotated.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    again = made.prepare(places, epoch=1)
    assert not torch.equal(made.masks(again)[0], found)  # each epoch draws anew


PAIRS = np.array([[0, 0], [1, 1], [3, 2]])


def reached(made: Any) -> dict[str, set[str]]:
    """The networks that get a gradient from each loss."""
    encoder, found = made.network.encoder, {}
    own, aware, restored = made.terms(made.prepare(PAIRS, epoch=0))
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
    made = phase(phases.Joint)
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
    made = some_steps_on(phase(phases.Joint))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = reached(made)
    assert found["grading_aware"] == found["segmentation_aware"] == {"restore"}
    assert found["grade"] == {"restore", "segment", "grade"}


def test_a_step_has_the_weighted_sum_of_all_losses():
    made = phase(phases.Joint, settings(loss_weights={"grade": 3.0, "grading_aware": 7.0, "pseudo": 0.0}))
    sample = made.prepare(PAIRS, epoch=0)
    torch.manual_seed(1)
    terms = made.terms(sample)
    weights = {
        "image": 1, "variation": 1e-6, "segmentation": 1, "segmentation_aware": 1, "grading_aware": 7,
        "grade": 3, "pseudo": 0,
    }  # fmt: skip
    expected = sum(weights[name] * term.item() for name, term in (terms.own | terms.aware).items())
    torch.manual_seed(1)  # dropout
    assert made.training_step(sample, 0).item() == pytest.approx(expected, rel=1e-5)


def test_a_loss_through_images_trains_what_computed_them_alone():
    first, second = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    images = first * torch.ones(2)
    loss = losses.only_through(images, (second * images).square().sum())
    assert loss.item() == 72
    loss.backward()
    assert first.grad == 72  # of 2 * 9 * first^2: 36 * 2
    assert second.grad is None


def test_a_hard_threshold_teaches_nothing():
    assert reached(some_steps_on(phase(phases.Joint, settings(softness=None))))["grading_aware"] == set()


def test_healthy_eyes_get_empty_pseudo_masks():
    made = phase(phases.Joint)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    masks = made.pseudo_masks(images, torch.tensor([0, 1, 4]))
    assert not masks[0].any()
    assert 0 < masks[1:].mean() < 1
    evidence = made.teacher.evidence_of(images, made.teacher.encoder.lesions_in_parts(images))
    assert masks.shape[-1] == 4 * evidence.shape[-1] == SIDE
    assert set(masks.unique().tolist()) == {0, 1}


def test_the_weight_of_pseudo_masks_rises(monkeypatch):
    made = phase(phases.Joint, settings(pseudo_masks={"ramp_epochs": 3}))
    weights = []
    for epoch in range(5):
        monkeypatch.setattr(phases.Joint, "current_epoch", epoch)
        weights.append(made.weights()["pseudo"])
    assert weights == [0.25, 0.5, 0.75, 1, 1]
    assert made.weights()["segmentation_aware"] == 1


def test_the_teacher_follows_slowly(tmp_path, monkeypatch):
    """After each step of the joint phase it moves by a tenth of the way."""
    monkeypatch.chdir(tmp_path)
    steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    follow = phases.Joint.on_train_batch_end

    def recorded(self: Any, *given: Any) -> None:
        before = {key: value.clone() for key, value in self.teacher.state_dict().items()}
        follow(self, *given)
        own = self.network.state_dict()
        expected = {
            key: 0.9 * before[key] + 0.1 * own[key] if value.is_floating_point() else value
            for key, value in before.items()
        }
        steps.append((expected, {key: value.clone() for key, value in self.teacher.state_dict().items()}))

    monkeypatch.setattr(phases.Joint, "on_train_batch_end", recorded)
    short = {name: {"epochs": 1, "batch_size": 2, "lr": 1e-3} for name in ("restoration", "grading", "joint")}
    trained(params=settings(pseudo_masks={"teacher_decay": 0.9}, **short))
    assert len(steps) == 2
    for expected, found in steps:
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


TASKS = ("none", "fixed", "joint")


@pytest.mark.parametrize(("restore", "segment"), product(TASKS, TASKS))
def test_ablations_say_what_each_phase_trains(restore, segment):
    for kind, trains in (
        (phases.Restoration, {"fixed", "joint"}),
        (phases.Grading, set()),
        (phases.Joint, {"joint"}),
    ):
        made = phase(kind, settings(super_resolution=restore, segmentation=segment))
        encoder, parts = made.network.encoder, made.trained()
        assert any(part is encoder.restore for part in parts) == (restore in trains)
        assert any(part is encoder.segment for part in parts) == (segment in trains)
        assert any(part is encoder.encoder for part in parts) == (kind is not phases.Restoration)


AWARE = ("none", "segmentation", "grading", "both")
GRID = [*product(("joint",), TASKS, AWARE), *product(("none", "fixed"), TASKS, ("both",))]


@pytest.mark.parametrize(("restore", "segment", "aware"), GRID)
def test_ablations_say_which_losses_there_are(restore, segment, aware):
    made = phase(phases.Joint, settings(super_resolution=restore, segmentation=segment, task_aware=aware))
    expected = {"grade"}
    expected |= {"segmentation", "pseudo"} if segment == "joint" else set()
    if restore == "joint":
        expected |= {"image", "variation"}
        expected |= (
            {"segmentation_aware"} if aware in ("segmentation", "both") and segment != "none" else set()
        )
        expected |= {"grading_aware"} if aware in ("grading", "both") else set()
    terms = made.terms(made.prepare(PAIRS[:2], epoch=0))
    assert (terms.own | terms.aware).keys() == expected
    assert all(name.endswith("aware") for name in terms.aware)


def test_fixed_networks_stay_as_they_are(tmp_path, monkeypatch):
    """Also the running statistics of their BatchNorm; where both are none, grading is the first phase."""
    monkeypatch.chdir(tmp_path)
    states: dict[str, dict[str, Tensor]] = {}
    finish = phases.Phase.finish

    def kept(self: Any) -> None:
        states[self.name] = {key: value.clone() for key, value in self.network.state_dict().items()}
        finish(self)

    monkeypatch.setattr(phases.Phase, "finish", kept)
    monkeypatch.setattr(phases.Graded, "finish", kept)
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
    """Train the joint phase with told QWKs; says whether the grader holds the weights after an epoch."""
    told, after = iter(qwks), []
    monkeypatch.setattr(phases, "qwk", lambda *_: next(told))
    validate = phases.Joint.validate

    def kept(self: Any) -> dict[str, float]:
        after.append({key: value.clone() for key, value in self.network.state_dict().items()})
        return validate(self)

    monkeypatch.setattr(phases.Joint, "validate", kept)
    grader = trained(params=settings(select=select, super_resolution="none", segmentation="none"))
    return lambda epoch: same(state(grader), after[epoch])


@pytest.mark.parametrize(("select", "epoch"), [("best", 0), ("last", 1)])
def test_the_selected_epoch_is_kept(select, epoch, tmp_path, monkeypatch):
    """Two epochs of grading, two of the joint phase, whose first is the better one."""
    monkeypatch.chdir(tmp_path)
    holds = best([0.9, 0.1, 0.5, 0.3], select, tmp_path, monkeypatch)
    assert holds(epoch)
    assert not holds(1 - epoch)


def test_another_experiments_network_is_a_start(finished, tmp_path):
    grader, _ = finished
    grader.save(tmp_path)
    other = DeepMT(settings(), Crop(size=SIDE))
    network = other.begin(Start("experiment", tmp_path / "model.safetensors"))
    assert isinstance(network, DeepMTNetwork)
    assert same(network.state_dict(), state(grader))


def test_it_is_a_grader_that_needs_masks():
    assert GRADERS.get("deepmt") is DeepMT
    assert DeepMT.needs == {"masks"}

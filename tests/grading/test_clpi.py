"""Tiny trainings; oracles: the loss as published, and brute force over pixels."""

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import drgrade.networks.clpi as networks
from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Job, Photographs, Start
from drgrade.grading.clpi import Clpi, Params
from drgrade.grading.clpi_network import ActivationMaps, ClpiNetwork, Joint, WithLesions, negative_loss
from drgrade.grading.clpi_patches import LabelledPatches, patch_loss, turned, window_classes
from drgrade.images.augment import Plan, normalise
from drgrade.lesions.mask_store import BITS, Masks
from drgrade.params import Augment, Crop, Grade
from drgrade.tracking import NullRun

SIDE = 128
LESIONS = [["MA"], ["HE"], ["EX", "SE"]]
KINDS = [BITS["MA"], BITS["HE"], BITS["EX"] | BITS["SE"]]
EVERY = sum(BITS.values())
TINY = networks.Architecture(4, (1, 1, 1, 1))


@pytest.fixture
def tiny(monkeypatch):
    """A small trunk in place of DenseNet-121; the lesion network is as large as published."""
    monkeypatch.setattr(
        "drgrade.encoders.create_encoder", lambda _, __, **options: networks.Encoder(TINY, **options)
    )


def params(**values) -> Params:
    common = {"input_size": SIDE, "epochs": 2, "batch_size": 3, "patches": 4, "lr": 1e-3}
    return Params(**common | values)


def with_masks(count: int = 4, side: int = SIDE, annotated: int = EVERY) -> Photographs:
    """Photographs with a bright square at each lesion; of each kind there is one in another corner."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 60, (count, side, side, 3), np.uint8)
    array = np.zeros((count, side, side), np.uint8)
    for mask, image in zip(array, pixels, strict=True):
        for bit, (y, x) in zip(BITS.values(), itertools.product((8, side - 24), repeat=2), strict=True):
            mask[y : y + 16, x : x + 16] |= bit
            image[y : y + 16, x : x + 16] = 40 + 12 * bit
    masks = Masks(array, np.arange(count), np.full(count, annotated, np.uint8))
    return Photographs(pixels, pd.DataFrame({"row": range(count)}), masks=masks)


def job(run=None, key: str = "key") -> Job:
    pixels = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
    table = pd.DataFrame({"grade": [row % 5 for row in range(9)], "row": range(9)})
    splits = Photographs(pixels, table[:6]), Photographs(pixels, table[6:])
    return Job(*splits, Start("random"), 3, "t", key, run or NullRun(), with_masks())


def labelled(masked: Photographs | None = None, **values) -> LabelledPatches:
    common = {
        "size": SIDE, "lesions": LESIONS, "min_area": 8, "count": 5, "seed": 3,
        "augment": Augment(brightness=0, contrast=0).model_dump(),
    }  # fmt: skip
    return LabelledPatches(masked or with_masks(), **common | values)


def test_negative_learning_has_the_published_values():
    certain = torch.eye(5)[[2, 2]]
    found = negative_loss(certain, torch.tensor([2, 4]))
    assert found.tolist() == pytest.approx([16.118, 0], abs=1e-3)
    assert negative_loss(torch.full((1, 5), 0.2), torch.tensor([1])).item() == pytest.approx(-np.log(0.8))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_of_grades_mixes_both_and_is_finite_at_certainty(share):
    network = ClpiNetwork(networks.Encoder(TINY), "cross_entropy", negative_share=share)
    logits = torch.tensor([[0.0, 2, -1, 0.5, 1], [3, 0, 0, 0, 0]], requires_grad=True)
    grades = torch.tensor([1, 4])
    p = logits.detach().double().softmax(1).numpy()
    own = -np.log(p[[0, 1], grades]).mean()
    others = [-np.log(1 - p[row, k]) for row in range(2) for k in range(5) if k != grades[row]]
    assert network.loss(logits, grades).item() == pytest.approx((1 - share) * own + share * np.mean(others))
    far = torch.tensor([[200.0, 0, 0, 0, 0]] * 2, requires_grad=True)
    loss = network.loss(far, torch.tensor([0, 3]))
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()


def test_classes_that_nobody_looked_for_do_not_count():
    logits = torch.randn(3, 4, requires_grad=True)
    classes = torch.tensor([0, 3, 1])
    known = torch.tensor([[True, True, True, False], [True] * 4, [True, True, False, False]])
    patch_loss(logits, classes, known).backward()
    assert (logits.grad != 0).tolist() == known.tolist()
    every = torch.ones(3, 4, dtype=torch.bool)
    expected = -logits.log_softmax(1)[torch.arange(3), classes].mean()
    torch.testing.assert_close(patch_loss(logits, classes, every), expected)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(96, 96), (96, 192), (128, 64)]), st.sampled_from([0, 3, 40])
)
def test_class_of_a_window_is_that_of_the_largest_area(seed, sizes, least):
    size, side = sizes
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(0, 6)):
        y, x = rng.integers(0, side - 2, 2)
        height, width = rng.integers(1, 12, 2)
        mask[y : y + height, x : x + width] |= np.uint8(1 << rng.integers(0, 4))
    starts = np.arange(0, size - 63, 16)
    found = window_classes(mask, KINDS, size, starts, least).reshape(len(starts), len(starts))
    scale = side / size
    for row, column in itertools.product(range(len(starts)), repeat=2):
        (y, x), (below, right) = (
            [round(scale * (starts[place] + far)) for place in (row, column)] for far in (0, 64)
        )
        areas = [(mask[y:below, x:right] & kinds > 0).sum() / scale**2 for kinds in KINDS]
        shown = max(areas) > 0 and max(areas) >= least
        assert found[row, column] == (1 + int(np.argmax(areas)) if shown else 0)


def test_a_patch_is_the_window_that_its_class_says():
    source = with_masks()
    patches = labelled(source)
    batch = patches.batch(np.arange(6), epoch=0)
    assert batch.images.shape == (30, 3, 64, 64)
    assert (batch.known.shape, batch.known.all().item()) == ((30, 4), True)
    windows = [
        (source.masks[place][y : y + 64, x : x + 64], source.images[place, y : y + 64, x : x + 64])
        for place in range(4)
        for y, x in itertools.product(range(0, SIDE - 63, 16), repeat=2)
    ]
    by_pixels = {}
    for mask, image in windows:
        areas = [(mask & kinds > 0).sum() for kinds in KINDS]
        for turn in range(8):
            by_pixels[turned(image, turn).tobytes()] = 1 + int(np.argmax(areas)) if max(areas) else 0
    found = [image.permute(1, 2, 0).numpy().tobytes() for image in batch.images]
    assert [by_pixels[pixels] for pixels in found] == batch.classes.tolist()
    assert set(batch.classes.tolist()) == {0, 1, 2, 3}


def test_least_area_is_that_of_the_published_input():
    patches = labelled(min_area=16 * 16 * (1024 / SIDE) ** 2)  # the drawn squares
    assert patches.classes[0].reshape(5, 5)[0, 0] == 1  # sees the whole square of MA
    assert (labelled(min_area=16 * 16 * (1024 / SIDE) ** 2 + 64).classes == 0).sum() > (
        patches.classes == 0
    ).sum()


def test_turns_are_the_eight_symmetries():
    patch = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = {turned(patch, turn).tobytes() for turn in range(8)}
    assert len(seen) == 8
    assert turned(patch, 0).tobytes() == patch.tobytes()


def test_patches_depend_on_seed_epoch_and_position_alone():
    patches = labelled()
    whole = patches.batch(np.array([4, 1, 7]), epoch=2)
    part = patches.batch(np.array([7]), epoch=2)
    assert torch.equal(whole.images[10:], part.images)
    assert torch.equal(whole.classes[10:], part.classes)
    for other in (patches.batch(np.array([7]), epoch=3), labelled(seed=4).batch(np.array([7]), epoch=2)):
        assert not torch.equal(other.images, part.images)


def test_all_classes_of_a_photograph_are_equally_likely():
    source = with_masks(1)
    source.masks.array[:, :24] = 0  # of MA and HE nothing is left
    patches = labelled(source, count=2000)
    assert np.bincount(patches.classes[0], minlength=4)[[0, 3]].tolist() != [12, 13]
    counts = np.bincount(patches.batch(np.arange(1), 0).classes.numpy(), minlength=4)
    assert counts[1] == counts[2] == 0
    assert counts[[0, 3]] == pytest.approx([1000, 1000], abs=120)


def test_kinds_that_were_not_annotated_are_unknown_unless_seen(caplog):
    source = with_masks(annotated=BITS["HE"] | BITS["EX"])
    source.masks.array[:] &= BITS["HE"] | BITS["EX"]
    with caplog.at_level(logging.INFO):
        patches = labelled(source)
    assert patches.known.tolist() == [[True, False, True, False]] * 4
    assert "no patch is of the class MA, so patches do not teach it" in caplog.text
    batch = patches.batch(np.arange(8), 0)
    for one, known in zip(batch.classes.tolist(), batch.known.tolist(), strict=True):
        assert known == [True, False, True, one == 3]


def test_lesion_network_learns_from_patches_without_moving_its_statistics(tiny):
    grader = Clpi(params(attention=False, fusion=False, attn_stopgrad=True), Crop())
    network = grader.new_network("random")
    module = Joint(network, grader.params, grader.preprocess, job())
    before = {name: value.clone() for name, value in network.encoder.lesions.named_buffers()}
    batch = module.patches.batch(np.arange(3), 0)
    loss = module.loss_of_patches(batch)
    loss.backward()
    lesions = network.encoder.lesions
    assert all(torch.equal(value, before[name]) for name, value in lesions.named_buffers())
    assert all(parameter.grad.abs().max() > 0 for parameter in lesions.parameters())
    optimizer, first = torch.optim.Adam(lesions.parameters(), 3e-4), loss.item()
    for _ in range(8):
        optimizer.step()
        optimizer.zero_grad()
        loss = module.loss_of_patches(batch)
        loss.backward()
    assert loss.item() < 0.5 * first


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_step_adds_the_losses_of_both_batches(tiny, weight):
    grader = Clpi(params(patch_weight=weight), Crop())
    module = Joint(grader.new_network("random"), grader.params, grader.preprocess, job())
    batch = module.prepare(np.arange(3), 0)
    assert (len(batch.graded.grades), len(batch.patches.classes)) == (3, 12)
    loss = module.training_step(batch, 0)
    grades, patches = (module.terms[name][0] for name in ("grade_loss", "patch_loss"))
    torch.testing.assert_close(loss.detach(), grades + weight * patches)
    assert module.losses == [loss.detach()]


class Stopping(NullRun):
    """Keeps what is measured; stops the training after an epoch."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.values = stop, []

    def metrics(self, values, step=0) -> None:
        self.values.append(values)
        if step == self.stop:
            raise InterruptedError


def test_a_stopped_training_ends_as_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for key, stop in (("whole", None), ("parts", 1), ("parts", None)):
        grader, run = Clpi(params(negative_share=0.2), Crop()), Stopping(stop)
        try:
            grader.fit(job(run, key))
        except InterruptedError:
            continue
        found.append(grader.network.state_dict())
    assert [len(run.values), run.values[0].keys() >= {"grade_loss", "patch_loss", "val_qwk"}] == [1, True]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_saved_grader_predicts_alike_without_masks(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader = GRADERS.get("clpi")(params(epochs=1, select="last", checkpoints=["last"]), Crop())
    grader.fit(job())
    grader.save(tmp_path / "model")
    again = Clpi.load(tmp_path / "model")
    shown = job().val
    output = grader.predict(shown)
    np.testing.assert_allclose(output.probabilities.sum(1), 1)
    assert output.features.shape == (3, 1024)
    np.testing.assert_allclose(again.predict(shown).probabilities, output.probabilities, rtol=1e-5)
    assert Clpi.needs == {"masks"}
    scores = grader.explainable().network(torch.rand(2, 3, SIDE, SIDE))
    assert scores.shape == (2,)


def test_a_model_with_a_missing_tensor_is_refused(tiny, tmp_path):
    grader = Clpi(params(), Crop())
    grader.network = grader.new_network("random")
    grader.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: not the tensors of .*head\.bias"):
        Clpi.load(tmp_path)


def test_a_step_in_bfloat16_is_close_to_one_in_float32(tiny):
    found = []
    for half in (False, True):
        torch.manual_seed(0)
        grader = Clpi(params(attn_stopgrad=False), Crop())
        module = Joint(grader.new_network("random"), grader.params, grader.preprocess, job())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            module.training_step(module.prepare(np.arange(3), 0), 0).backward()
        assert all(one.grad.isfinite().all() for one in module.network.parameters())
        found.append({name: float(values[0]) for name, values in module.terms.items()})
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_activation_maps_are_the_weighted_features_of_the_best_grade(tiny):
    network = Clpi(params(), Crop()).new_network("random").eval()
    batch = torch.rand(2, 3, 192, 192)
    with torch.no_grad():
        found = ActivationMaps(network)(batch)
        features, logits = network.encoder.forward_features(batch), network(batch)
        whole = WithLesions(network)(batch)
        maps = network.encoder.lesions.maps(batch)
    weights = network.head.weight.detach()
    for row in range(2):
        expected = sum(weights[logits[row].argmax(), k] * features[row, k] for k in range(1024))
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (2, 3, 3)
    torch.testing.assert_close(whole, torch.cat([logits, maps[:, 1:].flatten(2).max(2).values], 1))
    with pytest.raises(UserError, match="train with loss: cross_entropy"):
        ActivationMaps(Clpi(params(loss="coral"), Crop()).new_network("random"))


def test_patches_are_normalised_as_photographs_are(tiny):
    grader = Clpi(params(), Crop())
    module = Joint(grader.new_network("random"), grader.params, grader.preprocess, job())
    module.mean, module.std = (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)
    seen = []
    module.network.encoder.lesions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = module.patches.batch(np.arange(1), 0)._replace(changes=Plan(None, None))
    module.loss_of_patches(batch)
    torch.testing.assert_close(seen[0], normalise(batch.images / 255, module.mean, module.std))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_size": 100}, "input_size.*multiple of 64"),
        ({"encoder": "resnet50"}, "encoder.*clpi_densenet121"),
        ({"lesions": [["MA"], ["MA"], ["EX"]]}, "MA is in two classes"),
        ({"lesions": [["MA"], ["HE"]]}, "lesions"),
        ({"negative_share": 0.5, "loss": "mse"}, "negative_share: needs a loss of five classes"),
        ({"patch_weight": 0.0, "fusion": False}, "nothing would train the lesion network"),
        ({"recompute": True, "compile": True}, "recompute: does not work with compile"),
    ],
    ids=str,
)
def test_wrong_params(values, message):
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        Params(**values)


def test_loss_is_the_published_one_unless_the_experiment_sets_it():
    shared = Grade(loss="mse", input_size=192, lr=0.5)
    assert [Params().over(shared).loss, Params(loss="corn").over(shared).loss] == ["cross_entropy", "corn"]
    assert (Params().over(shared).input_size, Params().over(shared).lr) == (192, 0.5)

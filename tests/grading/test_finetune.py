"""Where the images come from must not change what is learnt; steps and averages are exact."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.grading.conftest import Recorded
from torch import nn

from drgrade.errors import UserError
from drgrade.grading import regression
from drgrade.grading.base import GRADERS, Job, Photographs, Start
from drgrade.grading.finetune import Finetune, Params
from drgrade.grading.losses import CRITERIA
from drgrade.grading.models import load_model
from drgrade.grading.optimise import factor
from drgrade.images import scaled as sizes
from drgrade.images.shards import write_store
from drgrade.images.statistics import EYEPACS
from drgrade.images.store import CropStore
from drgrade.params import Augment, Crop, check
from drgrade.rng import numpy_rng
from drgrade.seeding import seed_everything
from drgrade.tracking import NullRun

SIZE, ROWS = 48, 14
PARAMS = Params(encoder="tf_efficientnet_lite0", input_size=32, epochs=2, batch_size=4, select="best")


@pytest.fixture
def crops(tmp_path):
    """A store in three shards, and its images."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (ROWS, 6, 6, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_store(pictures, tmp_path / "store.json", "png", shard_bytes=5 * SIZE * SIZE * 3 // 2)
    return tmp_path / "store.json", pictures


def table(rows) -> pd.DataFrame:
    return pd.DataFrame({"grade": [row % 5 for row in rows], "row": rows})


def trained(images, train, val, test, params=PARAMS) -> np.ndarray:
    grader = GRADERS.get("finetune")(params, Crop())
    parts = Photographs(images, train), Photographs(images, val)
    grader.fit(Job(*parts, Start("random"), 3, "t", "key", NullRun()))
    return grader.predict(Photographs(images, pd.DataFrame({"row": test}))).probabilities


def test_a_store_gives_what_pictures_scaled_beforehand_give(crops, tmp_path, monkeypatch):
    """The oracle holds each split's images in memory, scaled one by one, in the order of its table."""
    monkeypatch.chdir(tmp_path)
    manifest, pictures = crops
    train, val, test = [9, 2, 13, 4, 11, 7, 1], [12, 0, 3], [5, 8]
    found = trained(CropStore(manifest), table(train), table(val), np.array(test))
    ready = np.stack(
        [cv2.resize(pictures[row], (32, 32), interpolation=cv2.INTER_AREA) for row in [*train, *val, *test]]
    )
    expected = trained(
        ready,
        table(train).assign(row=range(7)),
        table(val).assign(row=range(7, 10)),
        np.arange(10, 12),
    )
    np.testing.assert_array_equal(found, expected)
    # and the images matter: other test photographs get other grades
    assert np.abs(found - trained(ready, table([0, 1, 2, 3]), table([]), np.arange(10, 12))).max() > 0


def test_a_store_of_the_input_size_is_read_as_it_is(crops, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest, pictures = crops
    monkeypatch.setattr(sizes.cv2, "resize", None)  # nothing may be scaled
    params = PARAMS.model_copy(update={"input_size": SIZE, "epochs": 1})
    splits = table([9, 2, 13, 4]), table([12, 0]), np.array([5, 8])
    found = trained(CropStore(manifest), *splits, params)
    np.testing.assert_array_equal(found, trained(pictures, *splits, params))


class MeanColours(nn.Module):
    """The smallest of encoders: mean colours, BatchNorm."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        return self.norm(batch.mean(dim=(2, 3)))


class Colours(regression.EncoderWithHead):
    """The smallest of networks, in place of :class:`EncoderWithHead`: mean colours, BatchNorm, one unit."""

    made: list["Colours"]

    def __init__(self, encoder=None, loss="mse"):
        super().__init__(MeanColours(), loss)
        self.made.append(self)


def use_colours(monkeypatch):
    """The grader finetune trains :class:`Colours`."""
    monkeypatch.setattr("drgrade.encoders.create_encoder", lambda *_: None)
    monkeypatch.setattr(regression, "EncoderWithHead", Colours)
    monkeypatch.setattr(Colours, "made", [], raising=False)


class Stopping(NullRun):
    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def metrics(self, values, step=0):
        if step == self.stop:
            raise InterruptedError


STEPPED = {"input_size": 32, "epochs": 3, "batch_size": 3, "accumulate": 2, "lr": 0.1, "weight_decay": 0.0}


def averaged(monkeypatch, select, qwks, stop=None):
    """A training on eight photographs whose epochs validate as told; states and rates after each step."""
    states, rates, step = [], [], torch.optim.AdamW.step
    use_colours(monkeypatch)
    told = iter(qwks)
    monkeypatch.setattr(regression, "qwk", lambda *_: next(told))

    def recorded(optimizer, closure=None):
        rates.append(optimizer.param_groups[0]["lr"])
        loss = step(optimizer, closure)
        own = Colours.made[0].state_dict()
        states.append({key: value.detach().cpu().clone() for key, value in own.items()})
        return loss

    images = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3)).astype(np.uint8)
    splits = Photographs(images, table(range(8))), Photographs(images, table(range(8, 12)))
    grader = GRADERS.get("finetune")(Params(select=select, weights_ema=0.6, **STEPPED), Crop())
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", recorded)
        grader.fit(Job(*splits, Start("random"), 3, "t", "key", Stopping(stop)))
    return grader.network.state_dict(), states, rates


@pytest.mark.parametrize(("select", "steps"), [("best", 4), ("last", 6)])
def test_averaged_weights_that_validated_best_are_kept_through_a_stop(tmp_path, monkeypatch, select, steps):
    """Batches of three, three and two: two steps an epoch, six in all; the second epoch is the best."""
    monkeypatch.chdir(tmp_path)
    found, states, rates = averaged(monkeypatch, select, [0.1, 0.5, 0.3])
    assert len(states) == 6
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), 0.1, total_steps=6
    )
    expected = []
    for _ in range(6):
        expected.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)
    average = {key: value.cpu() for key, value in start_of_colours().items()}
    for state in states[:steps]:
        average = {key: 0.6 * average[key] + 0.4 * state[key] for key in average}
    for key, value in average.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value, states[steps - 1][key], atol=1e-5)
    with pytest.raises(InterruptedError):
        averaged(monkeypatch, select, [0.1, 0.5, 0.3], stop=2)
    resumed, states, _ = averaged(monkeypatch, select, [0.3])
    assert len(states) == 2
    assert all(torch.equal(value, resumed[key]) for key, value in found.items())


def start_of_colours():
    seed_everything(3, "head")
    state = {key: value.clone() for key, value in Colours().state_dict().items()}
    return {key: value for key, value in state.items() if value.is_floating_point()}


def test_a_compiled_network_is_saved_under_plain_names(crops, tmp_path, monkeypatch):
    """Compiled by a backend that changes nothing; the saved one grades alike."""
    monkeypatch.chdir(tmp_path)
    use_colours(monkeypatch)
    compile_, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, dynamic: compile_(call, backend=backend))
    _, pictures = crops
    splits = Photographs(pictures, table([9, 2, 13, 4])), Photographs(pictures, table([12, 0]))
    networks = {}
    for compiled in (False, True):
        grader = GRADERS.get("finetune")(PARAMS.model_copy(update={"compile": compiled}), Crop())
        grader.fit(Job(*splits, Start("random"), 3, "t", "key", NullRun()))
        assert bool(graphs) is compiled
        grader.save(tmp_path)
        networks[compiled] = load_file(tmp_path / "model.safetensors")
        again = type(grader).load(tmp_path)
        shown = Photographs(pictures, table([5, 8]))
        expected = grader.predict(shown).probabilities
        np.testing.assert_allclose(again.predict(shown).probabilities, expected, atol=1e-6)
    assert networks[True].keys() == networks[False].keys() == Colours().state_dict().keys()
    for key, value in networks[True].items():
        torch.testing.assert_close(value, networks[False][key])


def test_augmentation_is_exact_under_mixed_precision(crops, tmp_path, monkeypatch):
    """The network sees the same images, bit for bit, whether the trainer casts to bfloat16 or not."""
    monkeypatch.chdir(tmp_path)
    _, pictures = crops
    seen = []
    forward = regression.GradedNetwork.forward

    def watched(self, batch):
        seen.append(batch.detach().clone())
        return forward(self, batch)

    monkeypatch.setattr(regression.GradedNetwork, "forward", watched)
    part = Photographs(pictures, table([9, 2, 13, 4]))
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    params = PARAMS.model_copy(update={"augment": Augment(**colours)})
    grader = GRADERS.get("finetune")(params, Crop())
    network = grader.new_network("random")
    job = Job(part, part, Start("random"), 3, "", "", None)
    module = regression.FineTune(network, params, grader.preprocess, job)
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            module.training_step(module.prepare(np.arange(4), 0), 0)
    assert seen[1].dtype == torch.float32
    assert torch.equal(*seen)


@pytest.mark.parametrize(("preset", "scale", "ratio", "rates"), [
    ("eyepacs_2021", [1, 1], [1, 1], {1: 1e-3, 13: 5.314e-4, 20: 1.355e-4, 21: 1e-4, 25: 1e-4}),
    ("eyepacs_2022", [0.87, 1.15], [0.7, 1.3], {1: 1e-3, 20: 1.355e-4, 21: 9.55e-5, 25: 3.94e-6}),
])  # fmt: skip
def test_presets_are_the_published_recipes_whatever_the_block_grade_says(preset, scale, ratio, rates):
    """Rates are 1e-3 (1 + cos(pi (epoch - 1) / 25)) / 2, epochs from 1; the clipped one ends at 1e-4."""
    grade = {
        "lr": 9.0, "epochs": 2, "clip": 1.0, "momentum": 0.5, "accumulate": 2, "loss": "corn",
        "select": "last", "augment": {"hue": 0.1, "pca": 0.5},
        "schedule": {"name": "cosine", "warmup_epochs": 1.0},
        "sampling": {"strategy": "class"}, "normalisation": "train",
    }  # fmt: skip
    experiments = {"a": {"preset": preset}, "b": {"preset": preset, "lr": 0.5, "augment": {"hue": 0.2}}}
    params = check({"grade": grade, "explanations": {}, "experiments": experiments}, "x")
    found = params.experiment("a")
    assert (found.input_size, found.epochs, found.batch_size, found.accumulate) == (512, 25, 16, 1)
    assert (found.optimizer, found.lr, found.momentum, found.weight_decay) == ("sgd", 1e-3, 0.9, 5e-4)
    assert (found.loss, found.normalisation, found.sampling.strategy) == ("mse", "eyepacs", "instance")
    assert (found.clip, found.layer_decay, found.decay, found.select) == (None, None, "all", "last")
    assert found.augment.model_dump() == {
        "flip": 0.5, "rotation": 180, "scale": scale, "ratio": ratio, "translate": 0.2, "brightness": 0.2,
        "contrast": 0.2, "saturation": 0, "hue": 0, "grayscale": 0, "zoom": [1, 1], "pca": 0,
    }  # fmt: skip
    for epoch, rate in rates.items():
        assert found.lr * factor(found.schedule, epoch - 1, 1, 25, found.lr) == pytest.approx(rate, rel=1e-3)
    changed = params.experiment("b")
    assert (changed.lr, changed.augment.hue, changed.augment.pca, changed.epochs) == (0.5, 0.2, 0, 25)


GRADES = np.array([0] * 9 + [1] * 3 + [2] * 2 + [4])
STILL = {
    "flip": 0.0, "rotation": 0.0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "translate": 0.0,
    "brightness": 0.0, "contrast": 0.0,
}  # fmt: skip
"""An augmentation that changes nothing."""


def of_grades(rows: int = len(GRADES), images=None) -> Photographs:
    """Photographs of rare and frequent grades; each row of the store has other pixels."""
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (len(GRADES), 32, 32, 3)).astype(np.uint8)
    return Photographs(images, pd.DataFrame({"grade": GRADES[:rows], "row": np.arange(len(GRADES))[:rows]}))


def module_of(**changed) -> regression.FineTune:
    params = Params(**{"encoder": "test_efficientnet", "input_size": 32, "batch_size": 4} | changed)
    grader = Finetune(params, Crop())
    job = Job(of_grades(), of_grades(), Start("random"), 3, "", "", NullRun())
    return regression.FineTune(grader.new_network("random"), params, grader.preprocess, job)


COUNTS = np.array([9, 3, 2, 0, 1])
BALANCED = np.array([1, 3, 4.5, 0, 9])
"""Largest count over count; no photograph is of grade 3."""


@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize(("strategy", "weights"), [
    ("instance", None),
    ("class", lambda epoch: BALANCED),
    ("progressive", lambda epoch: 0.9**epoch * BALANCED + (1 - 0.9**epoch)),
    ("o_o", lambda epoch: 0.975**epoch * 15 / 9 * BALANCED + (1 - 0.975**epoch) * np.array([1, 2, 2, 2, 2])),
])  # fmt: skip
def test_an_epoch_has_the_photographs_that_its_strategy_draws(strategy, weights, epoch, monkeypatch):
    monkeypatch.setattr(regression.FineTune, "current_epoch", epoch)
    module = module_of(sampling={"strategy": strategy}, augment=STILL)
    drawn = np.arange(15)
    if weights is not None:
        each = weights(epoch)[GRADES]
        drawn = numpy_rng(3, "resample", epoch).choice(15, 15, p=each / each.sum())
        assert len(set(drawn)) < 15
    loader = module.train_dataloader()
    positions = np.concatenate(list(loader.batches))
    assert sorted(positions) == list(range(15))
    batches = list(loader)
    seen = torch.cat([batch.pictures for batch in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(seen, of_grades().images[drawn[positions]])
    assert torch.cat([batch.grades for batch in batches]).tolist() == GRADES[drawn[positions]].tolist()


def test_a_photograph_that_is_drawn_twice_is_augmented_in_two_ways():
    module = module_of(sampling={"strategy": "class"}, batch_size=15)
    loader = module.train_dataloader()
    (batch,) = loader
    drawn = loader.prepare.keywords["drawn"][loader.batches[0]]
    again = [np.flatnonzero(drawn == item) for item in set(drawn) if (drawn == item).sum() > 1]
    assert again
    for places in again:
        moves = batch.changes.moves[places]
        assert len(torch.unique(moves, dim=0)) == len(places)


@pytest.mark.parametrize(("kind", "epoch", "weights"), [
    ("balance", 5, [1, 3, 4.5, 1, 9]),
    ("dynamic", 0, [1, 3, 4.5, 1, 9]),
    ("dynamic", 1, [1, 2, 2.75, 1, 5]),  # half of the way to 1
    ([1.0, 2.0, 3.0, 4.0, 5.0], 5, [1, 2, 3, 4, 5]),
])  # fmt: skip
def test_class_weights_weight_the_loss_of_a_step(kind, epoch, weights, monkeypatch):
    monkeypatch.setattr(regression.FineTune, "current_epoch", epoch)
    module = module_of(class_weights=kind, class_weights_decay=0.5, batch_size=15)
    (batch,) = module.train_dataloader()
    outputs = []
    module.network.register_forward_hook(lambda _, __, output: outputs.append(output.detach().double()))
    loss = module.training_step(batch, 0).item()
    errors = (outputs[0] - batch.grades).square().numpy()
    each = np.array(weights)[batch.grades]
    assert loss == pytest.approx((each * errors).sum() / each.sum(), rel=1e-5)
    assert loss != pytest.approx(errors.mean(), rel=1e-3)


class Stopped(Recorded):
    """Ends a training when an epoch, counted from 0, is reported; keeps the learning rates."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.rates = stop, []

    def metrics(self, values, step=0) -> None:
        if step == self.stop:
            raise InterruptedError
        self.rates.append(values["lr"])


@pytest.mark.parametrize("changed", [
    {
        "sampling": {"strategy": "o_o", "decay": 0.5}, "optimizer": "sgd", "lr": 0.01,
        "schedule": {"name": "multi_step", "milestones": [2, 5]}, "decay": "weights",
    },
    {"schedule": {"name": "plateau", "patience": 1, "gamma": 0.5}, "lr": 0.1},
    {"clip": 0.05, "schedule": {"name": "exponential", "warmup_epochs": 1.5, "gamma": 0.6}},
    {"class_weights": "dynamic", "class_weights_decay": 0.5, "sampling": {"strategy": "progressive"}},
], ids=["o_o", "plateau", "clip", "dynamic"])  # fmt: skip
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(changed, tmp_path, monkeypatch):
    """Killed in its fifth epoch of six; the resumed one has the same weights, bit for bit, and rates.

    The plateau is told losses that rise from the first epoch on: its rate falls after every second one.
    """
    monkeypatch.chdir(tmp_path)
    use_colours(monkeypatch)
    end_epoch = regression.FineTune.end_epoch
    monkeypatch.setattr(
        regression.FineTune, "end_epoch", lambda self, _: end_epoch(self, 1.0 + self.current_epoch)
    )
    params = Params(**{"input_size": 32, "epochs": 6, "batch_size": 4, "select": "last"} | changed)

    def run(stop: int | None) -> tuple[dict[str, torch.Tensor], list[float]]:
        grader, recorded = Finetune(params, Crop()), Stopped(stop)
        grader.fit(Job(of_grades(), of_grades(), Start("random"), 3, "t", "key", recorded))
        return grader.network.state_dict(), recorded.rates

    expected, rates = run(None)
    assert rates[-1] < rates[3]
    if params.schedule.name == "plateau":
        assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    with pytest.raises(InterruptedError):
        run(4)
    found, later = run(None)
    assert later == rates[4:]
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_a_gradient_is_clipped_to_its_norm(tmp_path, monkeypatch):
    """One step of plain SGD with a rate of 1 moves the parameters by the gradient."""
    monkeypatch.chdir(tmp_path)
    use_colours(monkeypatch)
    still = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    moved = {}
    for clip in (None, 0.05):
        params = Params(
            input_size=32, epochs=1, batch_size=15, clip=clip, schedule={"name": "constant"}, **still
        )  # fmt: skip
        grader = Finetune(params, Crop())
        seed_everything(3, "head")
        begun = [value.detach().clone() for value in Colours().parameters()]
        grader.fit(Job(of_grades(), of_grades(0), Start("random"), 3, "t", "key", NullRun()))
        after = [value.detach() for value in grader.network.parameters()]
        steps = [(new - old).flatten() for new, old in zip(after, begun, strict=True)]
        moved[clip] = torch.cat(steps).norm().item()
    assert moved[None] > 0.1
    assert moved[0.05] == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("loss", CRITERIA)
def test_a_network_of_each_loss_is_trained_saved_and_loaded(loss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader = Finetune(Params(encoder="test_efficientnet", loss=loss, **QUICK), Crop())
    begun = seeded(grader)
    grader.fit(Job(of_grades(), of_grades(), Start("random"), 3, "t", "key", NullRun()))
    after = grader.network.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in begun.items() if key.startswith("head."))
    output = grader.predict(of_grades())
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1, atol=1e-6)
    assert (output.probabilities >= 0).all()
    outputs = grader.network.read(torch.from_numpy(output.features)).detach()
    score = grader.network.score(outputs).numpy().clip(0, 4)
    np.testing.assert_allclose(output.probabilities @ np.arange(5), score, atol=1e-5)
    grader.save(tmp_path / "model")
    again = load_model(tmp_path / "model").predict(of_grades())
    np.testing.assert_array_equal(again.probabilities, output.probabilities)
    np.testing.assert_array_equal(again.features, output.features)


QUICK = {"input_size": 32, "epochs": 1, "batch_size": 8, "lr": 0.01}


def seeded(grader: Finetune) -> dict[str, torch.Tensor]:
    """The weights that a training with the seed 3 starts from."""
    seed_everything(3, "head")
    return {key: value.clone() for key, value in grader.new_network("random").state_dict().items()}


def test_lower_layers_of_a_vision_transformer_learn_more_slowly(tmp_path, monkeypatch):
    """At 1e-6 a layer down, the stem stays where it was; the head moves as without."""
    monkeypatch.chdir(tmp_path)
    moved = {}
    for decay in (None, 1e-6):
        grader = Finetune(Params(encoder="test_vit", layer_decay=decay, weight_decay=0.0, **QUICK), Crop())
        begun = seeded(grader)
        grader.fit(Job(of_grades(), of_grades(), Start("random"), 3, "t", "key", NullRun()))
        after = grader.network.state_dict()
        names = ("encoder.patch_embed.proj.weight", "head.weight")
        moved[decay] = [(after[name] - begun[name]).abs().max().item() for name in names]
    assert moved[None][0] > 1e-3
    assert moved[1e-6][0] < 1e-6
    assert moved[1e-6][1] > 1e-3


@pytest.mark.parametrize("normalisation", ["eyepacs", "train", "encoder"])
def test_images_are_normalised_as_asked_and_the_model_says_how(normalisation, tmp_path, monkeypatch):
    """In the oracle for ``train`` are the pixels of the training photographs alone."""
    monkeypatch.chdir(tmp_path)
    images = of_grades().images.copy()
    images[10:] //= 3  # validation
    train, val = of_grades(10, images), Photographs(images, table(range(10, 15)))
    seen = []
    forward = regression.GradedNetwork.forward
    monkeypatch.setattr(
        regression.GradedNetwork, "forward", lambda self, batch: seen.append(batch) or forward(self, batch)
    )
    params = Params(
        encoder="test_efficientnet", normalisation=normalisation, augment=STILL, **QUICK | {"batch_size": 10}
    )
    grader = Finetune(params, Crop())
    grader.fit(Job(train, val, Start("random"), 3, "t", "key", NullRun()))
    pixels = images[:10].reshape(-1, 3) / 255
    mean, std = {
        "eyepacs": ([0.426, 0.297, 0.213], [0.277, 0.202, 0.169]),
        "train": (pixels.mean(axis=0), pixels.std(axis=0)),
        "encoder": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }[normalisation]
    expected = np.sort(((images[:10] / 255 - mean) / std).reshape(-1, 3), axis=0)
    found = seen[0].permute(0, 2, 3, 1).reshape(-1, 3).sort(dim=0).values
    np.testing.assert_allclose(found, expected, atol=1e-4)
    validated = seen[1].permute(0, 2, 3, 1)
    np.testing.assert_allclose(validated, (images[10:] / 255 - mean) / std, atol=1e-4)
    grader.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.preprocess == grader.preprocess
    assert again.preprocess.mean == pytest.approx(mean)
    assert (again.preprocess.axes == EYEPACS.axes) is (normalisation != "train")
    np.testing.assert_array_equal(again.predict(val).probabilities, grader.predict(val).probabilities)


class Watched(NullRun):
    """Keeps the weights and the validation error of each epoch."""

    def __init__(self, grader: Finetune) -> None:
        super().__init__()
        self.grader, self.states, self.errors = grader, [], []

    def metrics(self, values, step=0) -> None:
        self.states.append({key: v.clone() for key, v in self.grader.network.state_dict().items()})
        self.errors.append(values.get("val_mse", np.nan))


def with_checkpoints(monkeypatch, tmp_path, select: str, val: Photographs) -> Watched:
    """A saved training of four epochs, of which the first validates best by QWK."""
    monkeypatch.chdir(tmp_path)
    use_colours(monkeypatch)
    told = iter([0.9, 0.2, 0.5, 0.3])
    monkeypatch.setattr(regression, "qwk", lambda *_: next(told))
    params = Params(**STEPPED | {"epochs": 4}, select=select, checkpoints=["best", "best_mse", "last"])
    grader = Finetune(params, Crop())
    run = Watched(grader)
    grader.fit(Job(of_grades(), val, Start("random"), 3, "t", "key", run))
    grader.save(tmp_path / "model")
    return run


def same(folder, checkpoint, state) -> bool:
    found = load_model(folder, checkpoint).tensors().state_dict()
    return all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize(("select", "selected"), [("best", 0), ("last", 3)])
def test_weights_of_other_epochs_are_saved_beside_the_selected_ones(select, selected, tmp_path, monkeypatch):
    run = with_checkpoints(monkeypatch, tmp_path, select, of_grades(8))
    lowest = int(np.argmin(run.errors))
    assert lowest in (1, 2)  # so that all three differ
    model = tmp_path / "model"
    checkpoints = [f"model_{name}.safetensors" for name in ("best", "best_mse", "last")]
    files = {"model.json", "model.safetensors", *checkpoints}
    assert {path.name for path in model.iterdir()} == files
    epochs = {None: selected, "best": 0, "best_mse": lowest, "last": 3}
    for checkpoint, epoch in epochs.items():
        assert [same(model, checkpoint, state) for state in run.states] == [n == epoch for n in range(4)]


def test_without_validation_there_is_only_the_last_epoch(tmp_path, monkeypatch):
    run = with_checkpoints(monkeypatch, tmp_path, "last", of_grades(0))
    model = tmp_path / "model"
    assert {path.name for path in model.iterdir()} == {
        "model.json", "model.safetensors", "model_last.safetensors"
    }  # fmt: skip
    assert same(model, "last", run.states[3])
    assert same(model, None, run.states[3])
    with pytest.raises(UserError, match=r"model_best\.safetensors: no such file; .*only the checkpoint last"):
        load_model(model, "best")


def test_a_checkpoint_that_was_not_asked_for_is_a_users_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader = Finetune(Params(encoder="test_efficientnet", input_size=32), Crop())
    grader.network = grader.new_network("random")
    grader.save(tmp_path)
    with pytest.raises(UserError, match="name best_mse in the experiment's key checkpoints") as error:
        load_model(tmp_path, "best_mse")
    assert str(error.value).startswith(f"{tmp_path / 'model_best_mse.safetensors'}: ")
    assert "\n" not in str(error.value)

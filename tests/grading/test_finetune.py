"""Where the images come from must not change what is learnt; steps and averages are exact."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from drgrade.grading import regression
from drgrade.grading.base import GRADERS, Job, Photographs, Start
from drgrade.grading.finetune import Params
from drgrade.images import scaled as sizes
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import Augment, Crop
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

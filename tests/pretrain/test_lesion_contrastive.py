import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import NTXentLoss

from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import LesionContrastive
from drgrade.pretrain import contrastive
from drgrade.pretrain.base import METHODS, Material
from drgrade.pretrain.contrastive import Projector, SupCon, projector
from drgrade.pretrain.lesion_contrastive import LesionPairs
from drgrade.pretrain.views import made, pair_views
from drgrade.tracking import NullRun
from drgrade.training import fit

TINY = LesionContrastive(encoder="test_efficientnet", start="random", epochs=3, batch_size=4)


class Run(NullRun):
    """Keeps what it is told; stops the training when told of ``last``."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.told, self.files = last, [], []

    def metrics(self, values, step=0):
        if step == self.last:
            raise InterruptedError
        self.told.append(values)

    def artifact(self, path, folder=None):
        self.files.append((path.name, path.stat().st_size))


def material(counts, *, rows=None, kinds=False):
    """Photographs of noise with so many boxes each, in a store of 8."""
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3))
    number = itertools.count()
    boxes = [
        np.array([[n := next(number) % 40, n, n + 8.0, n + 9] for _ in range(count)]) for count in counts
    ]
    return Material(
        images.astype(np.uint8),
        np.arange(len(counts)) if rows is None else np.array(rows),
        boxes,
        32,
        [np.arange(count) % 4 for count in counts] if kinds else None,
    )


def pairs(given, **changes):
    params = TINY.model_dump() | changes
    return LesionPairs(projector(params), given, params)


def fitted(given, run=None, name="t", **changes):
    params = TINY.model_dump() | changes
    return METHODS.get("lesion_contrastive")(params).fit(given, name=name, key="k", run=run or NullRun())


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 10), st.integers(0, 3))
def test_an_epoch_shows_so_many_different_lesions_of_each_photograph(counts, k, epoch):
    module = object.__new__(LesionPairs)
    torch.nn.Module.__init__(module)
    module.material, module.seed, module.settings = material(counts), 1, {"boxes_per_image": k}
    samples = module.samples(epoch)
    assert len({tuple(sample) for sample in samples}) == len(samples)
    shown = [
        sorted(box for place, box in samples if place == photograph) for photograph in range(len(counts))
    ]
    for boxes, count in zip(shown, counts, strict=True):
        assert len(boxes) == min(k, count)
        assert set(boxes) <= set(range(count))


def test_all_lesions_come_up_equally_often():
    module = pairs(material([5, 2, 1]), boxes_per_image=2)
    seen = np.zeros((3, 5), int)
    for epoch in range(2000):
        np.add.at(seen, tuple(module.samples(epoch).T), 1)
    assert (np.abs(seen[0] - 800) < 110).all()  # five standard deviations
    assert seen[1].tolist() == [2000, 2000, 0, 0, 0]
    assert seen[2].tolist() == [2000, 0, 0, 0, 0]


def test_what_a_photograph_shows_does_not_depend_on_the_others():
    alone = pairs(material([6], rows=[4]), boxes_per_image=3).samples(7)
    among = pairs(material([9, 6, 2], rows=[0, 4, 5]), boxes_per_image=3).samples(7)
    assert alone[:, 1].tolist() == among[among[:, 0] == 1][:, 1].tolist()
    other = pairs(material([6], rows=[4]), boxes_per_image=3, seed=2).samples(7)
    assert alone[:, 1].tolist() != other[:, 1].tolist()


@pytest.mark.parametrize("window", ["inside", "published"])
def test_views_are_windows_around_the_chosen_boxes(window):
    given = material([3, 1, 2], rows=[2, 0, 1])
    module = pairs(given, window=window)
    samples = np.array([[0, 2], [2, 1]])
    expected = pair_views(
        given.images, np.array([2, 1]), np.stack([given.boxes[0][2], given.boxes[2][1]]), 32,
        module.settings["augment"], module.seeds(np.array([[2, 2], [1, 1]]), 4), window=window,
    )  # fmt: skip
    assert torch.equal(module.views(module.prepare(samples, 4).pairs), made(expected))


def test_positives_are_pairs_or_lesions_of_a_kind():
    given = material([4, 4, 4], kinds=True)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 128, generator=generator)
    samples = np.array([[0, 1], [1, 3], [2, 1]])
    plain, alike = pairs(given), pairs(given, positives="lesion")
    assert plain.kinds(samples) is None
    assert alike.kinds(samples).tolist() == [1, 3, 1]
    assert float(plain.criterion(first, second, None)) == pytest.approx(
        float(NTXentLoss(0.07)(first, second)), abs=1e-5
    )
    found = alike.criterion(first, second, alike.kinds(samples))
    assert found == SupCon(0.07)(first, second, torch.tensor([1, 3, 1]))
    method = METHODS.get("lesion_contrastive")
    for positives, needed in (("pair", False), ("lesion", True)):
        assert method(TINY.model_dump() | {"positives": positives}).needs_kinds is needed


@pytest.mark.parametrize("changes", [
    {"optimiser": "lars", "lr": 0.3, "head": "linear", "warmup": 0.5},
    {"optimiser": "adamw", "lr": 1e-3, "positives": "lesion", "boxes_per_image": 3, "window": "published"},
])  # fmt: skip
def test_options_train(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    start = projector(TINY.model_dump()).encoder.state_dict()
    run = Run()
    encoder = fitted(material([1, 2, 4, 5], kinds=True), run, epochs=1, **changes)
    assert np.isfinite(run.told[0]["loss"])
    moved = [key for key, value in encoder.state_dict().items() if not torch.equal(value.cpu(), start[key])]
    assert "conv_stem.weight" in moved


def test_chunks_give_the_steps_of_the_whole_batch(tmp_path, monkeypatch):
    """A network without BatchNorm: same losses, same learning rates, same weights."""
    monkeypatch.chdir(tmp_path)
    runs, weights = [], []
    for chunk in (None, 6):
        run = Run()
        options = {"encoder": "test_vit", "batch_size": 8, "epochs": 2, "chunk": chunk, "warmup": 0.5}
        weights.append(fitted(material([1] * 8), run, **options).state_dict())
        shown = "loss", "lr", "alignment", "feature_rank"
        runs.append([{key: told[key] for key in shown} for told in run.told])
    for whole, chunked in zip(*runs, strict=True):
        assert chunked == pytest.approx(whole, rel=1e-4)
    assert all(torch.allclose(value, weights[1][key], atol=1e-5) for key, value in weights[0].items())


@pytest.mark.parametrize("chunk", [None, 6])
def test_averaged_weights_are_kept(tmp_path, monkeypatch, chunk):
    """By hand from the state after each of four steps, BatchNorm's statistics among it."""
    monkeypatch.chdir(tmp_path)
    start = {key: value.clone() for key, value in projector(TINY.model_dump()).encoder.state_dict().items()}
    modules, states, step = [], [start], torch.optim.SGD.step
    monkeypatch.setattr(
        contrastive, "fit", lambda module, **options: (modules.append(module), fit(module, **options))
    )

    def recorded(optimizer, closure=None):
        loss = step(optimizer, closure)
        own = modules[0].network.encoder.state_dict()
        states.append({key: value.detach().cpu().clone() for key, value in own.items()})
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    found = fitted(material([1] * 8), epochs=2, chunk=chunk, weights_ema=0.7).state_dict()
    assert len(states) == 5
    shares = [0.7**4, *(0.3 * 0.7 ** (4 - number) for number in (1, 2, 3, 4))]
    for key, value in found.items():
        if value.is_floating_point():
            expected = sum(share * state[key].double() for share, state in zip(shares, states, strict=True))
            assert torch.allclose(value.cpu().double(), expected, rtol=1e-5, atol=1e-6), key
    assert not torch.allclose(found["conv_stem.weight"].cpu(), states[-1]["conv_stem.weight"], atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 6])
def test_the_network_is_compiled_on_demand(tmp_path, monkeypatch, chunk):
    """What torch makes of it is not at stake here; tensors keep their names."""
    monkeypatch.chdir(tmp_path)
    networks = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: networks.append(call.__self__) or call)
    plain, found = (
        fitted(material([1] * 4), epochs=1, chunk=chunk, compile=compiled).state_dict()
        for compiled in (False, True)
    )
    assert [type(network) for network in networks] == [Projector]
    assert plain.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in plain.items())


def test_each_epoch_is_told_and_the_first_views_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run()
    fitted(material([1] * 6), run, epochs=2)
    assert len(run.told) == 2
    for told in run.told:
        assert told.keys() >= {"loss", "alignment", "uniformity", "feature_rank", "lr"}
        assert 0 < told["alignment"] < 4
        assert -8 < told["uniformity"] < 0
        assert 1 < told["feature_rank"] <= 4  # one batch of four
        assert told["scaled_alignment"] == pytest.approx(told["alignment"] / 0.14)
    assert [name for name, size in run.files if size] == ["views.png"]


@pytest.mark.parametrize("changes", [{}, {"chunk": 3, "weights_ema": 0.6}])
def test_stopped_and_resumed_equals_undisturbed(tmp_path, monkeypatch, changes):
    weights = []
    for folder, last in (("a", None), ("b", 1)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        options = {"boxes_per_image": 2, "warmup": 0.3, **changes}
        if last is not None:
            with pytest.raises(InterruptedError):
                fitted(material([1, 3, 2, 4]), Run(last), **options)
        run = Run()
        weights.append(fitted(material([1, 3, 2, 4]), run, **options).state_dict())
        assert len(run.told) == (3 if last is None else 2)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_pretraining_learns_to_tell_photographs_apart(tmp_path, monkeypatch):
    """Photographs of one colour each: the loss of an untrained head on B = 8 is about log(15)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (8, 1, 1, 3))
    images = np.clip(colours + rng.integers(-20, 20, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
    run = Run()
    colourless = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
    augment = TINY.augment.model_dump() | colourless
    given = Material(images, np.arange(8), [np.array([[20.0, 20, 30, 30]])] * 8, 32)
    encoder = fitted(given, run, epochs=20, batch_size=8, lr=0.05, augment=augment)
    losses = [told["loss"] for told in run.told]
    assert losses[0] > 2
    assert np.mean(losses[-3:]) < 1.2
    assert encoder.eval()(torch.zeros(1, 3, 32, 32).to(next(encoder.parameters()).device)).shape == (1, 256)


def test_a_store_of_any_lossless_format_gives_the_same_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    rows, boxes = np.array([4, 0, 5, 2]), [np.array([[20.0, 20, 30, 30], [3, 5, 9, 8]])] * 4
    weights = []
    for source in ("array", "raw", "png"):
        if source != "array":
            write_store(images, tmp_path / f"{source}.json", source, shard_bytes=2 * 64 * 64 * 3)
        pictures = images if source == "array" else CropStore(tmp_path / f"{source}.json")
        encoder = fitted(Material(pictures, rows, boxes, 32), name=source, epochs=1)
        weights.append(encoder.state_dict())
    for other in weights[1:]:
        for key, tensor in weights[0].items():
            assert torch.equal(tensor, other[key]), key

"""What is watched is what the k-NN grader would say, and looking changes nothing."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.grading.base import GRADERS, Job, Photographs, Start
from drgrade.params import Crop, LesionContrastive, LocalToGlobal, SimCLR
from drgrade.pretrain import watch
from drgrade.pretrain.base import METHODS, Graded, Material
from drgrade.pretrain.watch import Watch, unwatched
from drgrade.tracking import NullRun
from drgrade.training import CHECKPOINTS, save_tensors

CONV = "test_efficientnet"
SIZE = 32


class Recorded(NullRun):
    """Keeps what each epoch measured, and the files; stops the training when told of epoch ``last``."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.epochs, self.files = last, {}, []

    def metrics(self, values, step=0):
        if step == self.last:
            raise InterruptedError
        self.epochs[step] = values

    def artifact(self, path, folder=None):
        self.files.append(path.name)


def photographs(count=24, side=48):
    """Noise, brighter with the grade: row modulo 5."""
    rng = np.random.default_rng(0)
    light = 20 + 45 * (np.arange(count) % 5)[:, None, None, None]
    return (light + rng.integers(0, 60, (count, side, side, 3))).astype(np.uint8)


def graded(images, known=range(16), asked=range(16, 24)):
    def part(rows):
        return Photographs(images, pd.DataFrame({"grade": [row % 5 for row in rows], "row": list(rows)}))

    return Graded(part(known), part(asked))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return create_encoder(CONV, "random")


def test_it_is_what_the_grader_says_of_the_encoder(encoder, tmp_path):
    """The grader scales, reads the weights from a file and votes by itself; 15 of 16 neighbours count."""
    images = photographs()
    given = graded(images)
    found = Watch(given, CONV, SIZE, 1).values(encoder, 0)
    save_tensors(encoder.state_dict(), tmp_path / "w.safetensors")
    run = Recorded()
    knn = GRADERS.get("knn")
    grader = knn(knn.Params(encoder=CONV, input_size=SIZE, k=[15], temperature=0.07), Crop())
    start = Start("file", tmp_path / "w.safetensors")
    grader.fit(Job(given.train, given.val, start, 0, "t", "", run))
    assert found == {"val_knn_qwk": run.epochs[0]["val_qwk_k15"]}
    assert 0 < found["val_knn_qwk"] < 1


def test_fewer_photographs_than_neighbours_all_vote(encoder):
    few = graded(photographs(), known=[4, 9, 14], asked=[16, 19, 20])
    # all votes are for grade 4, and an answer that is the same for all agrees as chance does
    assert Watch(few, CONV, SIZE, 1).values(encoder, 0)["val_knn_qwk"] == 0


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [2, 5]), (9, []), (None, [])])
def test_it_is_measured_every_so_many_epochs(encoder, monkeypatch, every, epochs):
    monkeypatch.setattr(watch, "knn_qwk", lambda frozen, graded: 0.5)
    watched = Watch(graded(photographs()), CONV, SIZE, every)
    assert [epoch for epoch in range(7) if watched.values(encoder, epoch)] == epochs
    assert Watch(None, CONV, SIZE, every).values(encoder, 0) == {}


def test_an_encoder_that_diverged_is_no_number(encoder):
    with torch.no_grad():
        encoder.conv_stem.weight.fill_(float("inf"))
    assert math.isnan(Watch(graded(photographs()), CONV, SIZE, 1).values(encoder, 0)["val_knn_qwk"])


def test_a_compiled_encoder_is_not_compiled_once_more(encoder):
    """For evaluation, that is, which could drive the training's own compiled forms out."""
    graphs = []
    expected = Watch(graded(photographs()), CONV, SIZE, 1).values(encoder, 0)
    encoder.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    assert Watch(graded(photographs()), CONV, SIZE, 1).values(encoder, 0) == expected
    assert not graphs


def test_looking_leaves_no_trace(encoder):
    encoder.train()
    encoder(torch.randn(4, 3, SIZE, SIZE)).sum().backward()
    encoder.bn1.eval()  # modes stay as they are, one by one
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in encoder.parameters()]
    modes = [module.training for module in encoder.modules()]
    torch.manual_seed(7)
    np.random.seed(7)
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    Watch(graded(photographs()), CONV, SIZE, 1).values(encoder, 0)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(encoder.parameters(), gradients, strict=True))
    assert [module.training for module in encoder.modules()] == modes
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()


BLOCKS = {
    "simclr": SimCLR(
        encoder=CONV, start="random", epochs=2, batch_size=4, input_size=SIZE, weights_ema=0.5
    ),
    "lesion_contrastive": LesionContrastive(encoder=CONV, start="random", epochs=2, batch_size=4),
    "local_to_global": LocalToGlobal(
        encoder="test_vit", epochs=2, batch_size=4, out_dim=32, warmup_epochs=0.5, global_size=SIZE,
        local_size=16, local_crops=1,
    ),
}  # fmt: skip


def trained(method, run, every):
    """The encoder's weights."""
    images = photographs()
    boxes = [np.array([[5.0, 5.0, 20.0, 20.0]])] * 8
    material = Material(images, np.arange(8), boxes, SIZE // 2, graded=graded(images))
    params = BLOCKS[method].model_dump() | {"knn_every": every}
    encoder = METHODS.get(method)(params).fit(material, name="t", key="k", run=run)
    return {key: value.cpu() for key, value in encoder.state_dict().items()}


@pytest.mark.parametrize("method", BLOCKS)
def test_a_watched_training_ends_as_one_that_is_not(method, tmp_path, monkeypatch):
    """Also when it is stopped, and resumed with watching turned off or on: both find the checkpoint."""
    monkeypatch.chdir(tmp_path)
    sizes, copied = [], watch.Frozen
    monkeypatch.setattr(watch, "Frozen", lambda *given: sizes.append(given[2]) or copied(*given))
    blind, seen = Recorded(), Recorded()
    expected = trained(method, blind, None)
    assert sizes == []
    found = trained(method, seen, 2)
    assert sizes == [SIZE]
    with pytest.raises(InterruptedError):
        trained(method, Recorded(last=1), 1)
    assert list(CHECKPOINTS.rglob("last.ckpt"))
    resumed = Recorded()
    again = trained(method, resumed, 2)
    assert list(resumed.epochs) == [1]
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
        assert torch.equal(value, again[key]), key
    measured = [epoch for epoch, values in seen.epochs.items() if "val_knn_qwk" in values]
    assert measured == [1]
    assert resumed.epochs[1]["val_knn_qwk"] == seen.epochs[1]["val_knn_qwk"]
    for epoch, values in blind.epochs.items():
        unchanged = seen.epochs[epoch].keys() - {"val_knn_qwk", "images_per_s", "peak_memory_gb"}
        assert {key: seen.epochs[epoch][key] for key in unchanged} == {key: values[key] for key in unchanged}


@pytest.mark.parametrize("method", BLOCKS)
def test_the_last_measurement_is_of_the_encoder_that_is_kept(method, tmp_path, monkeypatch):
    """The averaged weights of simclr, the teacher of local_to_global."""
    monkeypatch.chdir(tmp_path)
    run = Recorded()
    params = BLOCKS[method].model_dump()
    weights = trained(method, run, 2)
    encoder = create_encoder(params["encoder"], "random")
    encoder.load_state_dict(weights)
    again = Watch(graded(photographs()), params["encoder"], SIZE, 1).values(encoder, 0)
    assert again == {"val_knn_qwk": run.epochs[1]["val_knn_qwk"]}


def test_only_watching_is_left_out_of_what_a_checkpoint_is_known_by():
    for block in BLOCKS.values():
        settings = block.model_dump()
        assert unwatched(settings | {"knn_every": 4}) == unwatched(settings)
        assert settings.keys() - unwatched(settings).keys() == {"knn_every"}

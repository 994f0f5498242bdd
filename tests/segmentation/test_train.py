"""The stage on small photographs: what it writes and keeps; a stopped training ends the same."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from tests.segmentation.marked import write_marked

from drgrade.errors import UserError
from drgrade.params import Segmentation
from drgrade.segmentation import train as stage
from drgrade.segmentation.network import SegmentationNetwork
from drgrade.segmentation.regions import Region
from drgrade.segmentation.train import BINS, LIMIT, PlainTile, aupr, count_logits, plain_tiles
from drgrade.tracking import NullRun
from drgrade.training import CHECKPOINTS

LESIONS = {"MA": (60, 40, 64, 44), "EX": (100, 60, 130, 90)}
PHOTOGRAPHS = {
    "a": LESIONS,
    "b": {"EX": (70, 50, 90, 100), "MA": None},
    "c": {"MA": (150, 70, 154, 74)},
    "d": LESIONS,
    "e": LESIONS,
}
SPLITS = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "test"}
PARAMS = Segmentation(
    architecture="linknet", encoder="test_efficientnet", start="random", tile=64, scale=0.5,
    kinds=["MA", "EX"], epochs=3, tiles_per_photograph=2, batch_size=4, lr=0.01,
)  # fmt: skip


class Stopping(NullRun):
    """Keeps what is measured; stops a training before an epoch is saved."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.steps = stop, list[int]()
        self.values: dict[str, list[float]] = {}

    def __enter__(self) -> "Stopping":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def metrics(self, values, step=0) -> None:
        if step == self.stop:
            raise InterruptedError
        self.steps.append(step)
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)


@pytest.fixture(autouse=True)
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRGRADE_MARKED_ROOT", str(tmp_path / "raw"))
    monkeypatch.setattr("drgrade.resume.software", lambda *parts: "this code")
    write_marked(tmp_path, PHOTOGRAPHS, SPLITS)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch):
    """Trains, and returns the run, the tensors and ``training.json``."""

    def train(out: str, params: Segmentation = PARAMS, part: str = "holdout", stop: int | None = None):
        run = Stopping(stop)
        monkeypatch.setattr(stage, "track", lambda *_: run)
        stage.train_segmentation(
            "marked", part, Path("index.parquet"), Path("crops.parquet"), params, Path(out)
        )
        about = json.loads(Path(out, "training.json").read_text())
        return run, load_file(Path(out, "model/model.safetensors")), about

    return train


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_what_a_training_writes(trained) -> None:
    run, tensors, about = trained("out")
    network = SegmentationNetwork.load(Path("out/model"))
    assert network.params == PARAMS
    assert same(network.network.state_dict(), tensors)
    assert (about["part"], about["dataset"], about["seed"]) == ("holdout", "marked", 1)
    assert about["photographs"] == {"train": 3, "val": 1}
    assert about["start_weights"] == {"weights": "random", "seed": 1}
    assert run.steps == [0, 1, 2]
    assert [epoch["loss"] for epoch in about["history"]] == run.values["loss"]
    assert run.values["loss"][-1] < run.values["loss"][0]
    # only the last epoch is validated
    assert [sorted(epoch.get("val_aupr", [])) for epoch in about["history"]] == [[], [], ["EX", "MA"]]
    assert run.values["val_aupr_EX"] == [about["history"][-1]["val_aupr"]["EX"]]
    assert run.values["val_aupr"] == [pytest.approx(np.mean(list(about["history"][-1]["val_aupr"].values())))]
    assert not list(CHECKPOINTS.glob("*"))


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_training_that_was_stopped_ends_the_same(trained, select: str) -> None:
    params = PARAMS.model_copy(update={"select": select})
    _, undisturbed, about = trained("undisturbed", params)
    with pytest.raises(InterruptedError):
        trained("stopped", params, stop=1)
    assert not Path("stopped/model").exists()
    run, resumed, again = trained("stopped", params)
    assert run.steps == [1, 2]
    assert same(undisturbed, resumed)
    assert again == about


def test_changed_masks_are_another_training(trained) -> None:
    with pytest.raises(InterruptedError):
        trained("stopped", stop=1)
    Path("raw/a_MA.png").write_bytes(Path("raw/a_EX.png").read_bytes())
    run, *_ = trained("stopped")
    assert run.steps == [0, 1, 2]


def test_the_best_epoch_is_kept(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is told: the second epoch of three is the best, so its weights are those that are saved."""
    states, told = [], iter([0.2, 0.2, 0.5, 0.7, 0.4, 0.4])
    count = stage.count_logits

    def counted(network, *given):
        states.append({key: value.clone() for key, value in network.network.state_dict().items()})
        return count(network, *given)

    monkeypatch.setattr(stage, "count_logits", counted)
    monkeypatch.setattr(stage, "aupr", lambda _: next(told))
    _, tensors, about = trained("out", PARAMS.model_copy(update={"select": "best"}))
    assert [epoch["val_aupr"]["MA"] for epoch in about["history"]] == [0.2, 0.5, 0.4]
    assert [same(tensors, state) for state in states] == [False, True, False]


def test_without_a_lesion_in_validation_the_last_epoch_is_kept(trained, caplog) -> None:
    for kind in LESIONS:
        Path(f"raw/d_{kind}.png").write_bytes(Path("raw/b_MA.png").read_bytes())  # empty
    with caplog.at_level(logging.WARNING):
        *_, about = trained("out", PARAMS.model_copy(update={"select": "best"}))
    assert [epoch["val_aupr"] for epoch in about["history"]] == [{}, {}, {}]
    assert "no validation photograph shows a lesion" in caplog.text


def test_a_kind_that_nobody_annotated_for_training_is_reported(trained, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        trained("out", PARAMS.model_copy(update={"kinds": ["EX", "SE"], "epochs": 1}))
    assert [text for text in caplog.messages if "no training photograph" in text] == [
        "SE: annotated in no training photograph, so its predictions mean nothing"
    ]


def test_a_fold_trains_without_its_test_photographs(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    read, names = stage.read_regions, []
    monkeypatch.setattr(stage, "read_regions", lambda *given: (names.append(given[3]), read(*given))[1])
    *_, about = trained("out", PARAMS.model_copy(update={"folds": 4, "epochs": 1}), part="fold2")
    assert about["photographs"] == {"train": 2, "val": 1}
    train, val = map(set, names)
    assert len(train) == 2
    assert not train & val
    assert "e" not in train | val


def test_unknown_parts_are_refused(trained) -> None:
    with pytest.raises(UserError, match=r"^--part: 'fold0' is none of holdout; choose one of them$"):
        trained("out", part="fold0")


class Ramp(torch.nn.Module):
    """Logits of two kinds: red and green in -8 to 8."""

    kinds = ("MA", "EX")

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(16 / 255))

    def forward(self, batch):
        return batch[:, :2].float() * self.scale - 8


def test_the_aupr_is_that_of_scikit_learn() -> None:
    """Of all annotated pixels at once; bins are finer than the 256 different logits."""
    rng = np.random.default_rng(0)
    tiles = [
        PlainTile(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), np.zeros((32, 32), np.uint8), annotated)
        for annotated in (5, 1, 15, 5, 7)
    ]
    for tile in tiles:
        noise = rng.normal(0, 60, tile.masks.shape)
        tile.masks[...] = (tile.pixels[..., 0] + noise > 220) * 1 + (tile.pixels[..., 1] - noise > 240) * 4
    counts = count_logits(Ramp(), tiles, 2)
    assert counts.shape == (2, 2, BINS)
    for channel, bit in enumerate((1, 4)):
        shown = [tile for tile in tiles if tile.annotated & bit]
        truth = np.concatenate([(tile.masks & bit).ravel() > 0 for tile in shown])
        scores = np.concatenate([tile.pixels[..., channel].ravel() for tile in shown])
        assert counts[channel].sum() == len(truth)
        assert aupr(counts[channel].numpy()) == pytest.approx(
            average_precision_score(truth, scores), rel=1e-12
        )


def test_logits_beyond_the_limit_are_counted_at_the_ends() -> None:
    network = Ramp()
    network.scale.data *= 100
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    masks = np.full((32, 32), 5, np.uint8)
    counts = count_logits(network, [PlainTile(pixels, masks, 5)], 1)
    assert counts[:, 0].sum() == 0
    expected = int((LIMIT - 8) * BINS / (2 * LIMIT))
    assert {place: int(counts[0, 1, place]) for place in counts[0, 1].nonzero().flatten().tolist()} == {
        expected: 512, BINS - 1: 512
    }  # fmt: skip


def test_counting_leaves_the_mode_of_the_network() -> None:
    tile = PlainTile(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8), 5)
    for training in (True, False):
        network = Ramp().train(training)
        count_logits(network, [tile], 1)
        assert network.training is training


def test_plain_tiles_cover_the_field_of_view() -> None:
    pixels = np.zeros((130, 200, 3), np.uint8)
    pixels[:, :120] = 100
    masks = np.arange(130 * 200, dtype=np.int64).reshape(130, 200).astype(np.uint8)
    tiles = list(plain_tiles(Region("a", pixels, masks, 3), 64))
    # rows start at 0, 33 and 66, columns at 0, 45, 91 and 136; the last column of tiles is black
    assert len(tiles) == 9
    assert (tiles[4].masks == masks[33:97, 45:109]).all()
    assert (tiles[4].pixels == pixels[33:97, 45:109]).all()
    assert {tile.annotated for tile in tiles} == {3}

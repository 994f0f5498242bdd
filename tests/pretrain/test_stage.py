"""Who takes part in pretraining: never a test photograph, never one of the fold that is held out."""

import logging
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.errors import UserError
from drgrade.images.shards import write_store
from drgrade.pretrain.base import METHODS, Method
from drgrade.pretrain.stage import pretrain
from drgrade.schema import CROPS, INDEX, LESION_BOXES, write_table

# image_id, subset, split, fold under cross-validation, status, crop
PHOTOGRAPHS = [
    ("a", "grading", "train", 0, "ok", True),
    ("b", "grading", "val", 1, "ok", True),
    ("c", "grading", "test", 2, "ok", True),
    ("d", "grading", "train", 0, "ok", True),
    ("e", "grading", "train", 1, "ok", False),
    ("f", "grading", "train", 1, "filtered", True),
    ("g", "segmentation", "train", None, "ok", True),
    ("h", "segmentation", "test", None, "ok", True),
    ("i", "grading", "train", 2, "ok", True),
    ("j", "grading", "test", None, "unlabelled", True),
]
NAMES = [row[0] for row in PHOTOGRAPHS]
BOX = (1.0, 1.0, 5.0, 6.0)


class Spy(Method):
    """Learns nothing and remembers what it was given."""

    def fit(self, material, *, name, key, run):
        self.given.append(material)
        return torch.nn.Linear(1, 1)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Paths for :func:`pretrain`; the store's rows run against the index."""
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    paths = {
        name: tmp_path / file
        for name, file in {
            "index": "index.parquet", "crops": "crops.parquet", "store": "store.json",
            "patches": "patches.pkl", "manifest": "encoder.json", "weights": "weights",
        }.items()
    }  # fmt: skip
    cut = pd.DataFrame({"image_id": NAMES, "row": np.arange(len(NAMES))[::-1]})
    cut["row"] = cut["row"].astype("Int64").mask([not row[5] for row in PHOTOGRAPHS])
    write_table(cut.reindex(columns=list(CROPS)), paths["crops"], CROPS)
    write_store(np.zeros((len(NAMES), 8, 8, 3), np.uint8), paths["store"], "raw")
    return paths


def index(path, by_fold):
    columns = ["image_id", "subset", "split", "fold", "status", "crop"]
    table = pd.DataFrame(PHOTOGRAPHS, columns=columns)
    if by_fold:
        table["split"] = table["split"].mask(table["fold"].notna(), "train")
    else:
        table["fold"] = None
    write_table(table.reindex(columns=list(INDEX)), path, INDEX)


def run(files, monkeypatch, *, by_fold=False, kinds=None, **attributes):
    """Photographs, boxes and kinds that each encoder was given."""
    index(files["index"], by_fold)
    spy = type("Spy", (Spy,), {"given": [], **attributes})
    monkeypatch.setitem(METHODS._parts, "spy", spy)
    pretrain("spy", {"encoder": "resnet18"}, patch=4, by_fold=by_fold, kinds=kinds, **files)
    return [({NAMES[::-1][row] for row in given.rows}, given) for given in spy.given]


def write_boxes(path, boxes):
    path.write_bytes(pickle.dumps({"train": boxes, "val": {}}, protocol=4))


def test_whole_photographs_are_those_of_the_training_split(files, monkeypatch, caplog):
    write_boxes(files["patches"], {name: [BOX] * 2 for name in ("a", "c", "e", "g", "h")})
    with caplog.at_level(logging.WARNING, "drgrade.pretrain.stage"):
        ((names, given),) = run(files, monkeypatch, needs_boxes=False)
    assert names == {"a", "d", "g", "i"}
    assert {NAMES[::-1][row]: len(boxes) for row, boxes in zip(given.rows, given.boxes, strict=True)} == {
        "a": 2, "d": 0, "g": 2, "i": 0,
    }  # fmt: skip
    assert all(boxes.shape[1] == 4 for boxes in given.boxes)
    assert "3 photographs are not in the training split" in caplog.text


def test_only_photographs_with_boxes_where_boxes_are_needed(files, monkeypatch):
    """The pickle names photographs of the test, without a crop and without a box: none takes part."""
    write_boxes(files["patches"], {name: [BOX] for name in NAMES} | {"d": []})
    ((names, given),) = run(files, monkeypatch)
    assert names == {"a", "g", "i"}
    assert [boxes.tolist() for boxes in given.boxes] == [[list(BOX)]] * 3
    assert given.kinds is None


@pytest.mark.parametrize("needs_boxes", [True, False])
def test_each_encoder_is_blind_to_its_fold(files, monkeypatch, needs_boxes):
    write_boxes(files["patches"], {name: [BOX] for name in NAMES})
    seen = [names for names, _ in run(files, monkeypatch, by_fold=True, needs_boxes=needs_boxes)]
    assert seen == [{"b", "c", "g", "i"}, {"a", "c", "d", "g", "i"}, {"a", "b", "d", "g"}]
    written = sorted(path.name for path in files["weights"].iterdir())
    assert written == [f"encoder_fold{fold}.safetensors" for fold in range(3)]


def test_whole_photographs_do_without_patches(files, monkeypatch):
    files["patches"] = None
    ((names, given),) = run(files, monkeypatch, needs_boxes=False)
    assert names == {"a", "d", "g", "i"}
    assert [boxes.shape for boxes in given.boxes] == [(0, 4)] * 4
    with pytest.raises(UserError, match=r"^--patches: "):
        run(files, monkeypatch)


def test_one_photograph_is_too_few(files, monkeypatch):
    write_boxes(files["patches"], {"a": [BOX]})
    with pytest.raises(UserError, match=r"1 photographs with a lesion, .* lower patches\.min_score"):
        run(files, monkeypatch)


def kinds_table(path, rows):
    table = pd.DataFrame(rows, columns=["image_id", "x1", "y1", "x2", "y2", "lesion"])
    write_table(table.assign(score=None), path, LESION_BOXES)
    return path


def test_kinds_come_from_the_table_beside_the_pickle(files, monkeypatch, tmp_path):
    third = (0.1, 1.0, 5.0, 6.0)  # not a number of 32 bits
    write_boxes(files["patches"], {"a": [BOX, third], "i": [BOX], "c": [BOX]})
    rows = [("a", *BOX, "SE"), ("a", *third, "MA"), ("c", *BOX, "HE"), ("i", *BOX, "EX")]
    kinds = kinds_table(tmp_path / "boxes.parquet", rows)
    ((names, given),) = run(files, monkeypatch, needs_kinds=True, kinds=kinds)
    assert names == {"a", "i"}
    assert [found.tolist() for found in given.kinds] == [[3, 0], [2]]


@pytest.mark.parametrize(("rows", "message"), [
    ([("a", *BOX, "MA")], "other boxes on i"),
    ([("a", *BOX, "MA"), ("i", 1.0, 1.0, 5.0, 7.0, "MA")], "other boxes on i"),
    ([("a", *BOX, "MA"), ("i", *BOX, None)], "box on i is of unknown kind"),
    (None, "positives: 'lesion' needs the kind of each box"),
])  # fmt: skip
def test_kinds_that_do_not_fit_are_refused(files, monkeypatch, tmp_path, rows, message):
    write_boxes(files["patches"], {"a": [BOX], "i": [BOX]})
    kinds = rows and kinds_table(tmp_path / "boxes.parquet", rows)
    with pytest.raises(UserError, match=message):
        run(files, monkeypatch, needs_kinds=True, kinds=kinds)

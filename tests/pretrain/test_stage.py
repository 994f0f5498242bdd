"""Who takes part in pretraining: never a test photograph, never one of the fold that is held out."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.images.dataset import CroppedDataset
from drgrade.images.shards import write_store
from drgrade.params import LesionContrastive
from drgrade.pretrain import stage
from drgrade.pretrain.base import METHODS, Method
from drgrade.pretrain.stage import pretrain
from drgrade.schema import CROPS, INDEX, LESION_BOXES, read_table, write_table
from drgrade.tracking import Run

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
            "index": "index/index.parquet", "crops": "crop/crops.parquet", "store": "crop/store.json",
            "patches": "patches.pkl", "manifest": "encoder.json", "weights": "weights",
        }.items()
    }  # fmt: skip
    cut = pd.DataFrame({"image_id": NAMES, "row": np.arange(len(NAMES))[::-1]})
    cut["status"] = ["ok" if row[5] else "failed" for row in PHOTOGRAPHS]
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
    table["grade"] = [number % 5 if name not in "gj" else None for number, name in enumerate(NAMES)]
    write_table(table.reindex(columns=list(INDEX)), path, INDEX)


def run(files, monkeypatch, *, by_fold=False, kinds=None, params=None, folds=None, **attributes):
    """Photographs, boxes and kinds that each encoder was given."""
    index(files["index"], by_fold if folds is None else folds)
    spy = type("Spy", (Spy,), {"given": [], **attributes})
    monkeypatch.setitem(METHODS._parts, "spy", spy)
    monkeypatch.setattr("drgrade.resume.software", lambda *parts: "")  # it has no module
    params = {"encoder": "test_vit"} | (params or {})
    given = {name: files[name] for name in ("patches", "manifest", "weights")}
    data = CroppedDataset("own", files["index"].parents[1])
    pretrain("spy", params, patch=4, by_fold=by_fold, kinds=kinds, data=data, **given)
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


def test_encoders_that_were_finished_before_a_kill_are_not_trained_again(files, monkeypatch):
    files["patches"] = None
    trained, stop_at = [], 2

    def fit(self, material, *, name, key, run):
        if len(trained) == stop_at:
            raise InterruptedError
        trained.append(name)
        return torch.nn.Linear(1, 1)

    def killed():
        run(files, monkeypatch, by_fold=True, needs_boxes=False, fit=fit)

    with pytest.raises(InterruptedError):
        killed()
    stop_at = None
    killed()
    assert trained == [f"spy encoder_fold{fold}" for fold in (0, 1, 2)]
    assert len(list(files["weights"].iterdir())) == 3
    killed()  # a finished job leaves nothing behind: it is done again as a whole
    assert len(trained) == 6


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


WATCHED = {"needs_boxes": False, "params": {"knn_every": 2}}


def watched(given):
    """Names of the photographs that vote and of those that are graded, with their grades."""
    return [
        {NAMES[::-1][row]: grade for row, grade in zip(part.rows, part.grades, strict=True)}
        for part in (given.graded.train, given.graded.val)
    ]


def test_an_encoder_is_watched_by_the_grades_of_training_and_validation(files, monkeypatch):
    """Nothing filtered, without a crop or without a grade (g, j), nothing of the test, no segmentation."""
    files["patches"] = None
    ((_, given),) = run(files, monkeypatch, **WATCHED)
    assert watched(given) == [{"a": 0, "d": 3, "i": 3}, {"b": 1}]
    ((_, given),) = run(files, monkeypatch, needs_boxes=False)
    assert given.graded is None


def test_an_encoder_is_never_watched_by_its_own_fold(files, monkeypatch):
    files["patches"] = None
    found = [watched(given) for _, given in run(files, monkeypatch, by_fold=True, **WATCHED)]
    assert found == [
        [{"c": 2, "i": 3}, {"b": 1}],
        [{"a": 0, "d": 3}, {"c": 2, "i": 3}],
        [{"b": 1}, {"a": 0, "d": 3}],
    ]
    ((_, one),) = run(files, monkeypatch, folds=True, **WATCHED)
    assert watched(one) == found[0]


@pytest.mark.parametrize("without", ["grades", "val"])
def test_nothing_to_watch_by_is_one_line_in_the_log(files, monkeypatch, caplog, without):
    files["patches"] = None
    write = write_table

    def lacking(table, path, columns):
        if without == "grades":
            table["grade"] = None
        else:
            table["split"] = table["split"].replace("val", "test")
        write(table, path, columns)

    monkeypatch.setitem(globals(), "write_table", lacking)
    with caplog.at_level(logging.INFO, "drgrade.pretrain.stage"):
        ((_, given),) = run(files, monkeypatch, **WATCHED)
    assert given.graded is None
    count = 0 if without == "grades" else 3
    lines = [record.getMessage() for record in caplog.records if "val_knn_qwk" in record.getMessage()]
    assert lines == [
        f"{files['index']}: encoder: no val_knn_qwk: {count} graded photographs to train and 0 to validate, "
        "and it needs both"
    ]


@pytest.mark.parametrize("start", ["random", "own.pth"])
def test_the_manifest_says_what_the_encoder_started_from(files, monkeypatch, start):
    files["patches"] = None
    Path("own.pth").write_bytes(b"abc")
    run(files, monkeypatch, needs_boxes=False, params={"start": start, "seed": 3})
    known = {
        "random": {"weights": "random", "seed": 3},
        # of "abc", FIPS 180-2 appendix B.1
        "own.pth": {
            "weights": "own.pth",
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        },
    }
    about = json.loads(files["manifest"].read_text())
    assert about["start"] == known[start]
    assert about.keys() == {
        "method", "encoder", "mean", "std", "patch", "start", "inputs", "weights",
    }  # fmt: skip


EDITS = {
    "seed": {"params": {"seed": 2}},
    "size of patches": {"patch": 5},
    "boxes": {"boxes": (1.0, 1.0, 4.0, 6.0)},
    "split": {"moved": "a"},
    "start weights": {"weights": 1},
    "code": {"code": "another"},
    "folds": {"moved": "a"},
}


@pytest.mark.parametrize(
    ("by_fold", "edit"),
    [(False, None), (True, None)] + [(name == "folds", name) for name in EDITS],
)
def test_a_killed_pretraining_resumes_only_as_it_was(files, monkeypatch, tmp_path, caplog, by_fold, edit):
    """Killed in its second epoch; a photograph that has then become one of the test is never seen."""
    change = EDITS.get(edit, {})
    params = {"encoder": "test_efficientnet", "start": "start.pth", "epochs": 3, "batch_size": 2}
    index(files["index"], by_fold)

    def write_weights(seed):
        torch.manual_seed(seed)
        torch.save(create_encoder("test_efficientnet", "random").state_dict(), "start.pth")

    def run_stage(box=BOX, patch=4, **changes):
        write_boxes(files["patches"], {name: [box] for name in NAMES})
        given = {name: files[name] for name in ("patches", "manifest", "weights")}
        full = LesionContrastive(**params | changes).model_dump()
        data = CroppedDataset("own", files["index"].parents[1])
        pretrain("lesion_contrastive", full, patch=patch, by_fold=by_fold, data=data, **given)
        return json.loads(files["manifest"].read_text())["weights"]

    def stop(self, values, step=0):
        if step == 1:
            raise InterruptedError

    write_weights(0)
    with monkeypatch.context() as context:
        context.setattr(Run, "metrics", stop)
        with pytest.raises(InterruptedError):
            run_stage()
    if "moved" in change:
        table = read_table(files["index"], INDEX)
        rows = table["image_id"] == change["moved"]
        table.loc[rows, ["fold"] if by_fold else ["split"]] = 1 if by_fold else "test"
        write_table(table, files["index"], INDEX)
    write_weights(change.get("weights", 0))
    if "code" in change:
        monkeypatch.setattr("drgrade.resume.software", lambda *parts: change["code"])
    options = {"box": change.get("boxes", BOX), "patch": change.get("patch", 4)} | change.get("params", {})
    caplog.set_level("INFO")
    seen, material = [], stage._material
    monkeypatch.setattr(stage, "_material", lambda *args: seen.append(args[2]) or material(*args))
    found = run_stage(**options)
    assert any("resumes from" in record.getMessage() for record in caplog.records) == (edit is None)
    if edit == "split":
        assert [set(part["image_id"]) for part in seen] == [{"d", "g", "i"}]
    if edit == "folds":
        assert [set(part["image_id"]) for part in seen][1] == {"c", "d", "g", "i"}
    monkeypatch.setattr("drgrade.training.CHECKPOINTS", tmp_path / "elsewhere")
    assert found == run_stage(**options)

import json

import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.evaluate.costs import COLUMNS, COST, training_costs, weights_of
from drgrade.files import sha256
from drgrade.grading import cost


def written(folder, place, record, measured=None):
    """A training's files; returns the path of its training.json."""
    path = folder / str(place) / "training.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    if measured is not None:
        path.with_name(COST).write_text(json.dumps({"training": sha256(path)} | measured))
    return path


def test_means_over_trainings_and_the_highest_peak(tmp_path):
    record = {"experiment": "a", "parameters": 10}
    one = {"train_minutes": 2.0, "peak_memory_gb": 1.5, "images_per_s": 8.0, "device": "cpu, 2 threads"}
    other = {"train_minutes": 4.0, "peak_memory_gb": 1.0, "images_per_s": 4.0, "device": "a GPU"}
    paths = [
        written(tmp_path, 0, record, one | {"resumed": False}),
        written(tmp_path, 1, record, other | {"resumed": False}),
        written(tmp_path, 2, {"experiment": "b", "parameters": None}),
        tmp_path / "gone/training.json",
    ]
    table = training_costs(paths)
    assert tuple(table.columns) == COLUMNS
    a, b = table.astype(object).where(table.notna(), None).to_dict("records")
    assert a == {
        "experiment": "a", "trainings": 2, "resumed": 0, "parameters": 10, "train_minutes": 3.0,
        "peak_memory_gb": 1.5, "images_per_s": 6.0, "device": "cpu, 2 threads; a GPU",
    }  # fmt: skip
    assert b == dict.fromkeys(COLUMNS) | {"experiment": "b", "trainings": 1, "resumed": 0}
    assert weights_of(table) == {"a": 10, "b": None}


def test_a_resumed_training_counts_for_memory_only(tmp_path):
    record = {"experiment": "a", "parameters": 10}
    partly = {"train_minutes": None, "images_per_s": None, "peak_memory_gb": 3.0, "resumed": True}
    whole = {"train_minutes": 4.0, "images_per_s": 5.0, "peak_memory_gb": 1.0, "resumed": False}
    paths = [written(tmp_path, 0, record, partly), written(tmp_path, 1, record, whole)]
    (row,) = training_costs(paths).to_dict("records")
    assert (row["trainings"], row["resumed"]) == (2, 1)
    assert [row[key] for key in ("train_minutes", "images_per_s", "peak_memory_gb")] == [4, 5, 3]
    (row,) = training_costs(paths[:1]).to_dict("records")
    assert pd.isna([row["train_minutes"], row["images_per_s"]]).all()


def test_the_cost_of_another_training_is_left_out(tmp_path):
    path = written(tmp_path, 0, {"experiment": "a", "parameters": 10}, {"train_minutes": 2.0})
    path.write_text(json.dumps({"experiment": "a", "parameters": 11}))
    (row,) = training_costs([path]).to_dict("records")
    assert row["parameters"] == 11
    assert pd.isna(row["train_minutes"])


@pytest.mark.parametrize("name", ["training.json", COST])
@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_record_is_named(name, text, tmp_path):
    path = written(tmp_path, 0, {"experiment": "a"})
    path.with_name(name).write_text(text)
    with pytest.raises(UserError, match=rf"0/{name}: not a training's record \(.*\); train it again"):
        training_costs([path])


def test_both_stages_mean_the_same_file():
    assert COST == cost.COST

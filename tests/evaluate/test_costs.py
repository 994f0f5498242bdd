import json

import pytest

from drgrade.errors import UserError
from drgrade.evaluate.costs import training_costs


def written(folder, records):
    paths = [folder / f"{place}.json" for place in range(len(records))]
    for path, record in zip(paths, records, strict=True):
        path.write_text(json.dumps(record))
    return paths


def test_means_over_trainings_and_the_highest_peak(tmp_path):
    paths = written(
        tmp_path,
        [
            {"experiment": "a", "parameters": 10, "train_minutes": 2.0, "peak_memory_gb": 1.5},
            {"experiment": "a", "parameters": 10, "train_minutes": 4.0, "peak_memory_gb": 1.0},
            {"experiment": "b", "images_per_s": 55.5, "parameters": None},
        ],
    )
    unknown = dict.fromkeys(("parameters", "train_minutes", "peak_memory_gb", "images_per_s"))
    assert training_costs([*paths, tmp_path / "gone.json"]) == {
        "a": unknown | {"parameters": 10, "train_minutes": 3.0, "peak_memory_gb": 1.5},
        "b": unknown | {"images_per_s": 55.5},
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_record_is_named(text, tmp_path):
    path = tmp_path / "training.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"training.json: not a training's record"):
        training_costs([path])

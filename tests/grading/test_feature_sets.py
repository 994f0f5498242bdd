"""Files of feature sets, and finding a photograph's rows in them."""

import json

import numpy as np
import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.grading.feature_sets import FILES, read_features, write_features

MEAN = np.arange(15, dtype=np.float64).reshape(5, 3)
FACTS = {"models": 2, "in_sample": False, "views": 50}


def table(**changed) -> pd.DataFrame:
    columns = {
        "dataset": ["demo", "demo", "demo", "site", "site"],
        "image_id": ["a", "b", "b", "a", "c"],
        "model": [1, 0, 1, 0, 0],
        "row": [4, 1, 2, 3, 0],
    }
    return pd.DataFrame(columns | changed)


@pytest.fixture
def folder(tmp_path):
    write_features(tmp_path, table(), MEAN, MEAN / 10, FACTS)
    return tmp_path


def test_what_is_read_is_what_was_written(folder):
    found = read_features(folder, "resnet")
    assert (found.name, found.models, found.in_sample) == ("resnet", 2, False)
    assert isinstance(found.mean, np.memmap)
    assert found.mean.dtype == found.std.dtype == np.float32
    np.testing.assert_array_equal(found.mean, MEAN)
    np.testing.assert_array_equal(found.std, (MEAN / 10).astype(np.float32))
    assert json.loads((folder / "features.json").read_text()) == FACTS
    assert sorted(FILES) == sorted(path.name for path in folder.iterdir())


def test_rows_of_photographs(folder):
    found = read_features(folder, "resnet")
    assert found.photographs("demo", ["b", "gone", "a"], 1).tolist() == [2, -1, 4]
    assert found.photographs("demo", ["a", "b"], 0).tolist() == [-1, 1]  # model 0 has no row of demo's a
    assert found.photographs("site", ["a", "c"], 0).tolist() == [3, 0]
    assert found.photographs(None, ["c", "b", "a"], 0).tolist() == [0, 1, 3]
    assert found.photographs("elsewhere", ["a"], 0).tolist() == [-1]
    assert found.photographs("demo", [], 0).shape == (0,)


def test_a_name_in_several_datasets_needs_the_dataset(tmp_path):
    write_features(tmp_path, table(model=[0, 0, 1, 0, 0]), MEAN, MEAN, FACTS)
    found = read_features(tmp_path, "resnet")
    with pytest.raises(UserError, match="several datasets have a photograph a"):
        found.photographs(None, ["b", "a"], 0)
    assert found.photographs(None, ["b"], 0).tolist() == [1]
    assert found.photographs("demo", ["a"], 0).tolist() == [4]


def test_values_are_means_then_standard_deviations(folder):
    found = read_features(folder, "resnet")
    both = found.values(np.array([4, 0]))
    np.testing.assert_allclose(both, [[12, 13, 14, 1.2, 1.3, 1.4], [0, 1, 2, 0, 0.1, 0.2]], rtol=1e-6)
    np.testing.assert_array_equal(found.values(np.array([4, 0]), std=False), both[:, :3])
    assert found.values(np.array([], int)).shape == (0, 6)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{folder}.*run the stage"):
        read_features(folder, "resnet")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file; run the stage"):
        read_features(folder, "resnet")


def test_an_empty_file_is_damaged(folder):
    (folder / "std.npy").write_bytes(b"")
    with pytest.raises(UserError, match="not a readable feature set"):
        read_features(folder, "resnet")


@pytest.mark.parametrize(
    ("rows", "std", "facts", "problem"),
    [
        (table(row=[5, 1, 2, 3, 0]), MEAN, FACTS, "rows outside the 5"),
        (table(row=[-1, 1, 2, 3, 0]), MEAN, FACTS, "rows outside the 5"),
        (table(model=[2, 0, 1, 0, 0]), MEAN, FACTS, "models outside the 2"),
        (table(model=[1, 0, 0, 0, 0]), MEAN, FACTS, "several rows of one photograph"),
        (table(), MEAN[:, :2], FACTS, r"\(5, 3\).*\(5, 2\)"),
        (table(), MEAN, {"models": 2}, "lacks 'in_sample'"),
    ],
)
def test_contradictions_are_refused(folder, rows, std, facts, problem):
    with pytest.raises(ValueError, match=problem):
        write_features(folder / "new", rows, MEAN, std, facts)
    assert not (folder / "new").exists()
    rows.astype({"model": "Int64", "row": "Int64"}).to_parquet(folder / "rows.parquet")
    np.save(folder / "std.npy", std)
    (folder / "features.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"{problem}.*run the stage features of resnet again"):
        read_features(folder, "resnet")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_refused(tmp_path, bad):
    std = MEAN.copy()
    std[3, 1] = bad
    with pytest.raises(UserError, match="1 of 5 rows have features that are not numbers"):
        write_features(tmp_path, table(), MEAN, std, FACTS)

"""The detector's boxes as heat maps, and which photographs have them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, LesionResults
from drgrade.explain.photographs import Photograph
from drgrade.images.geometry import CropGeometry
from drgrade.schema import LESION_BOXES, write_table

LESION_BOXES_METHOD = EXPLAINERS.get("lesion_boxes")
BOXES = [
    ("a", 2, 1, 6, 4, 0.3),
    ("a", 4.5, 2, 8, 5.2, 0.9),
    ("a", 5, 0, 7, 9, 0.5),
    ("a", -3, 6, 1, 40, 0.7),
    ("b", 0, 0, 9, 9, 1.0),
]


def write(folder, boxes, searched):
    folder.mkdir()
    table = pd.DataFrame(boxes, columns=["image_id", "x1", "y1", "x2", "y2", "score"]).assign(lesion="MA")
    write_table(table, folder / "lesions.parquet", LESION_BOXES)
    pd.DataFrame(searched, columns=["image_id", "status"]).to_parquet(folder / "searched.parquet")
    return folder


def dataset(name, **columns):
    return SimpleNamespace(name=name, index=pd.DataFrame(columns))


@pytest.fixture
def explainer(tmp_path):
    searched = [("a", "ok"), ("b", "ok"), ("c", "unreadable"), ("train", "ok"), ("graded", "ok")]
    folder = write(tmp_path / "demo", BOXES, searched)
    return LESION_BOXES_METHOD(LesionResults(dataset("demo"), {"demo": folder}))


def photograph(image_id, name="demo"):
    return Photograph(name, image_id, np.zeros((10, 9, 3), np.uint8), CropGeometry(0, 0, 9, 9, 9))


def test_the_best_score_of_all_boxes_that_touch_a_pixel(explainer):
    expected = np.zeros((10, 9), np.float32)
    for row, column in np.ndindex(expected.shape):
        covering = [
            score
            for image_id, x1, y1, x2, y2, score in BOXES
            if image_id == "a" and x1 < column + 1 and column < x2 and y1 < row + 1 and row < y2
        ]
        expected[row, column] = max(covering, default=0)
    heat = explainer.heat(photograph("a"))
    np.testing.assert_array_equal(heat, expected)
    assert heat.dtype == np.float32
    assert not explainer.heat(photograph("graded")).any()


def test_only_photographs_that_were_searched_and_not_trained_on(explainer):
    names = ["a", "b", "c", "train", "graded", "new"]
    subsets = ["segmentation"] * 4 + ["grading"] * 2
    splits = ["test", "val", "test", "train", "train", "test"]
    own = dataset("demo", image_id=names, subset=subsets, split=splits)
    assert explainer.explains(own) == {"a", "b", "graded"}
    assert explainer.explains(dataset("other", image_id=names, subset=subsets, split=splits)) == set()


def test_split_names_of_another_dataset_mean_nothing(tmp_path):
    folder = write(tmp_path / "big", [], [("train", "ok")])
    explainer = LESION_BOXES_METHOD(LesionResults(dataset("masked"), {"big": folder}))
    assert explainer.explains(dataset("big", image_id=["train"], subset=["segmentation"], split=["train"]))


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(UserError, match=r"^--boxes: needed by the method lesion_boxes"):
        LESION_BOXES_METHOD(LesionResults(dataset("demo"), {}))
    with pytest.raises(UserError, match=r"lesions\.parquet: no such file"):
        LESION_BOXES_METHOD(LesionResults(dataset("demo"), {"demo": tmp_path}))

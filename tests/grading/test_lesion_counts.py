"""Grades from the lesions that a network marks: a tiny training, saved and loaded."""

import numpy as np
import pandas as pd
import pytest
from tests.grading.conftest import Recorded

from drgrade.errors import UserError
from drgrade.grading.base import Job, Photographs, Start
from drgrade.grading.lesion_counts import LesionCounts, Params
from drgrade.grading.models import load_model
from drgrade.lesions.mask_store import BITS, Masks
from drgrade.params import Crop

SIDE = 64


def eyes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey crops with yellow squares, as many as the grade 0-4, and their masks."""
    images = np.full((count, SIDE, SIDE, 3), 90, np.uint8)
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    for number in range(count):
        for place in range(number % 5):
            spot = np.s_[4 + 12 * place : 12 + 12 * place, 20:28]
            images[number][spot], masks[number][spot] = (250, 240, 60), BITS["EX"]
    return images, masks


def job(run: Recorded, tmp_path, monkeypatch) -> Job:
    monkeypatch.chdir(tmp_path)
    images, masks = eyes(20)
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(20)], "row": range(20), "patient_id": None})
    graded = Photographs(images, table.assign(grade=np.arange(20) % 5))
    drawn = Masks(masks[10:], np.arange(10), np.full(10, BITS["EX"], np.uint8))
    masked = Photographs(images, table.iloc[10:].reset_index(drop=True), masks=drawn)
    val = Photographs(images, graded.table.iloc[:5])
    return Job(graded, val, Start("random"), 0, "t", "key", run, masked=masked)


def grader(**keys) -> LesionCounts:
    sizes = {"encoder": "test_efficientnet", "input_size": SIDE, "tile": 64, "epochs": 10}
    return LesionCounts(Params.model_validate({**sizes, "tiles_per_photograph": 2, **keys}), Crop(size=SIDE))


def test_the_number_of_marks_tells_the_grade(tmp_path, monkeypatch):
    run, made = Recorded(), grader()
    given = job(run, tmp_path, monkeypatch)
    made.fit(given)
    output = made.predict(given.train)
    assert np.corrcoef(output.score, given.train.grades)[0, 1] > 0.9
    assert run.values["left_out_qwk"] > 0.7
    assert {"alpha", "spread", "val_qwk"} <= set(run.values)
    np.testing.assert_allclose(output.probabilities.sum(axis=1), 1)

    made.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    again = loaded.predict(given.train)
    np.testing.assert_array_equal(again.score, output.score)
    np.testing.assert_array_equal(again.probabilities, output.probabilities)


def test_crops_of_another_size_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"input_size: 96.*crops of 64 pixels; set it to crop.size"):
        grader(input_size=96).fit(job(Recorded(), tmp_path, monkeypatch))

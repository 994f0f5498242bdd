"""A cropped dataset whose grade is its brightness, and a grader that reads it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgrade.grading.base import Grader, Output, Photographs, interpolated
from drgrade.images.dataset import CroppedDataset
from drgrade.images.shards import write_store
from drgrade.params import Crop, Experiment
from drgrade.schema import CROPS, INDEX, PREDICTIONS, write_table

LEVELS = (20, 60, 100, 140, 180)
"""Brightness of the photographs of grade 0 to 4."""
GRADES = [n % 5 for n in range(20)]


class Brightness(Grader):
    """The mean brightness in steps of 40 is the grade."""

    def fit(self, job) -> None:
        """Learn nothing."""

    def predict(self, photographs: Photographs) -> Output:
        """The brightness of each photograph, read one by one."""
        means = np.array([photographs.images[row].mean() for row in photographs.rows])
        return Output(interpolated((means - LEVELS[0]) / 40))


@pytest.fixture
def brightness() -> Brightness:
    """The grader."""
    return Brightness(Experiment(grader="brightness"), Crop())


@pytest.fixture
def dataset(tmp_path) -> CroppedDataset:
    """Twenty grey photographs of ten patients, of which the last four only train."""
    data, count = CroppedDataset("own", tmp_path / "results/own"), len(GRADES)
    index = pd.DataFrame({"image_id": [f"i{n:02}" for n in range(count)], "grade": GRADES})
    index = index.assign(patient_id=[f"p{n // 2}" for n in range(count)], subset="grading", status="ok")
    index["split"] = ["test"] * 16 + ["train"] * 4
    write_table(index.reindex(columns=list(INDEX)), data.index_file, INDEX)
    rows = list(range(count))[::-1]  # the store is in another order than the index
    cut = index[["image_id"]].assign(row=rows, status="ok")
    write_table(cut.reindex(columns=list(CROPS)), data.crops_file, CROPS)
    pixels = np.stack([np.full((32, 32, 3), LEVELS[grade], np.uint8) for grade in GRADES[::-1]])
    write_store(pixels, data.store_file)
    return data


@pytest.fixture
def training(dataset) -> Callable[[str, Grader], Path]:
    """Writes what the stage grade leaves of a trained grader, and returns its folder."""

    def write(name: str, grader: Grader) -> Path:
        folder = dataset.folder / "grade" / name / "seed0"
        grader.save(folder / "model")
        rows = dataset.graded().query("split == 'test'").assign(experiment=name, seed=0, dataset="own")
        write_table(rows.reindex(columns=list(PREDICTIONS)), folder / "predictions.parquet", PREDICTIONS)
        return folder

    return write

"""A small cropped dataset, and a way to fit graders that learn from the features of a frozen encoder."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from drgrade.grading.base import Grader, Job, Photographs, Start
from drgrade.images.dataset import CroppedDataset
from drgrade.images.shards import write_store
from drgrade.schema import CROPS, INDEX, write_table
from drgrade.tracking import NullRun


class Recorded(NullRun):
    """Keeps what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def metrics(self, values, step=0) -> None:
        self.values |= values


@pytest.fixture
def fitted() -> Callable[[Grader, pd.DataFrame, pd.DataFrame], dict[str, float]]:
    """Fits a grader whose features do not come from images; given are its tables of photographs.

    Returns what the grader measures.
    """
    none = np.empty((0, 32, 32, 3), np.uint8)

    def fit(grader: Grader, train: pd.DataFrame, val: pd.DataFrame) -> dict[str, float]:
        run = Recorded()
        grader.fit(Job(Photographs(none, train), Photographs(none, val), Start("random"), 0, "t", "", run))
        return run.values

    return fit


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Callable[..., CroppedDataset]:
    """Writes datasets of random images, both eyes of each patient, in a folder that is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRGRADE_TRACKING", "off")

    def write(
        name: str,
        *,
        grades: list[int | None] = (0, 1, 2, 3, 4) * 3,
        splits: list[str] = ("train", "train", "train", "val", "test"),
        folds: int | None = None,
        pixel_seed: int = 0,
    ) -> CroppedDataset:
        data, count = CroppedDataset(name, tmp_path / "results" / name), len(grades)
        index = pd.DataFrame(
            {"image_id": [f"i{n}" for n in range(count)], "subset": "grading", "status": "ok"}
        )
        index["patient_id"] = [f"p{n // 2}" for n in range(count)]
        index["eye"] = [("left", "right")[n % 2] for n in range(count)]
        index["grade"] = grades
        index["split"] = [splits[n // 2 % len(splits)] for n in range(count)]
        index["fold"] = None if folds is None else [n % folds for n in range(count)]
        write_table(index.reindex(columns=list(INDEX)), data.index_file, INDEX)
        cut = pd.DataFrame({"image_id": index["image_id"], "row": range(count), "status": "ok"})
        write_table(cut.reindex(columns=list(CROPS)), data.crops_file, CROPS)
        pixels = np.random.default_rng(pixel_seed).integers(0, 256, (count, 40, 40, 3), np.uint8)
        write_store(pixels, data.store_file)
        return data

    return write

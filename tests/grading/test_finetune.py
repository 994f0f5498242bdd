"""Where the pictures come from must not change what is learnt."""

import cv2
import numpy as np
import pandas as pd
import pytest

from drgrade import schema
from drgrade.grading.base import GRADERS, Photographs, Training
from drgrade.grading.stage import grade
from drgrade.images import scaled as sizes
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import Crop, Experiment, Grade
from drgrade.tracking import NullRun

SIZE, ROWS = 48, 14
PARAMS = Grade(input_size=32, epochs=2, batch_size=4, select="best")


@pytest.fixture
def crops(tmp_path):
    """A store in three shards, and its pictures."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (ROWS, 6, 6, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_store(pictures, tmp_path / "store.json", "png", shard_bytes=5 * SIZE * SIZE * 3 // 2)
    return tmp_path / "store.json", pictures


def table(rows) -> pd.DataFrame:
    return pd.DataFrame({"grade": [row % 5 for row in rows], "row": rows})


def trained(images, train, val, test, params=PARAMS) -> np.ndarray:
    grader = GRADERS.get("finetune")("tf_efficientnet_lite0", params.model_dump())
    training = Training(
        Photographs(images, train), Photographs(images, val), "random", 3, "t", "key", NullRun()
    )
    grader.fit(training)
    return grader.predict(images, test)


def test_a_store_gives_what_pictures_scaled_beforehand_give(crops, tmp_path, monkeypatch):
    """The oracle holds each split's pictures in memory, scaled one by one, in the order of its table."""
    monkeypatch.chdir(tmp_path)
    manifest, pictures = crops
    train, val, test = [9, 2, 13, 4, 11, 7, 1], [12, 0, 3], [5, 8]
    found = trained(CropStore(manifest), table(train), table(val), np.array(test))
    ready = np.stack(
        [cv2.resize(pictures[row], (32, 32), interpolation=cv2.INTER_AREA) for row in [*train, *val, *test]]
    )
    expected = trained(
        ready,
        table(train).assign(row=range(7)),
        table(val).assign(row=range(7, 10)),
        np.arange(10, 12),
    )
    np.testing.assert_array_equal(found, expected)
    # and the pictures matter: other test photographs get other grades
    assert np.abs(found - trained(ready, table([0, 1, 2, 3]), table([]), np.arange(10, 12))).max() > 0


def test_a_store_of_the_input_size_is_read_as_it_is(crops, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest, pictures = crops
    monkeypatch.setattr(sizes.cv2, "resize", None)  # nothing may be scaled
    params = PARAMS.model_copy(update={"input_size": SIZE, "epochs": 1})
    splits = table([9, 2, 13, 4]), table([12, 0]), np.array([5, 8])
    found = trained(CropStore(manifest), *splits, params)
    np.testing.assert_array_equal(found, trained(pictures, *splits, params))


def test_seeds_and_folds_share_one_scaled_copy(crops, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    names = [f"i{row}" for row in range(ROWS)]
    index = pd.DataFrame({"image_id": names, "patient_id": names, "subset": "grading", "status": "ok"})
    index["grade"], index["fold"] = [row % 5 for row in range(ROWS)], [row % 3 for row in range(ROWS)]
    schema.write_table(index.reindex(columns=list(schema.INDEX)), tmp_path / "index.parquet", schema.INDEX)
    cut = pd.DataFrame({"image_id": names, "row": range(ROWS), "status": "ok"})
    schema.write_table(cut.reindex(columns=list(schema.CROPS)), tmp_path / "crops.parquet", schema.CROPS)
    scaled = []
    scale = sizes.scale
    monkeypatch.setattr(sizes, "scale", lambda part, size: scaled.append(len(part)) or scale(part, size))
    out = tmp_path / "out"
    grade(
        "e", Experiment(start="random", seeds=[0, 1]), PARAMS.model_copy(update={"epochs": 1}), Crop(),
        dataset="demo", index=tmp_path / "index.parquet", crops=tmp_path / "crops.parquet", store=crops[0],
        weights=None, predictions=out / "predictions.parquet", manifest=out / "models.json",
        models=out / "models",
    )  # fmt: skip
    assert sum(scaled) == ROWS  # two seeds of three folds
    assert len(list((out / "models").iterdir())) == 6
    tested = schema.read_table(out / "predictions.parquet", schema.PREDICTIONS).query("split == 'test'")
    assert sorted(tested["image_id"]) == sorted(names * 2)

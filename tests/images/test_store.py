import numpy as np
import pandas as pd
import pytest

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry
from drgrade.images.store import Crops, open_store


@pytest.fixture
def files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    np.save(tmp_path / "crops.npy", pictures)
    boxes = {"x0": [0, None, -5], "y0": [0, None, 2], "x1": [16, None, 35], "y1": [16, None, 42]}
    table = pd.DataFrame(
        boxes | {"image_id": ["b", "gone", "a"], "row": [0, None, 2], "scale": [0.5, None, 0.2]}
    )
    table["rule"] = ["disc", "", "disc"]
    table["status"] = ["ok", "failed", "ok"]
    table["reason"] = ["", "empty file", ""]
    schema.write_table(table, tmp_path / "crops.parquet", schema.CROPS)
    return tmp_path / "crops.npy", tmp_path / "crops.parquet", pictures


def test_crops_by_image(files):
    store, table, pictures = files
    crops = Crops(store, table)
    assert (crops.size, len(crops), crops.rows) == (8, 2, {"b": 0, "a": 2})
    np.testing.assert_array_equal(crops["a"], pictures[2])
    assert crops.geometry("a") == CropGeometry(-5, 2, 35, 42, 8)
    assert "gone" not in crops
    with pytest.raises(KeyError):
        crops.geometry("gone")


def test_store_is_mapped_and_read_only(files):
    pictures = open_store(files[0])
    assert isinstance(pictures, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pictures[0] = 0


def test_damaged_stores(files, tmp_path):
    store, table, _ = files
    with pytest.raises(UserError, match="no such file"):
        open_store(tmp_path / "none.npy")
    short = tmp_path / "short.npy"
    short.write_bytes(store.read_bytes()[:-100])
    with pytest.raises(UserError, match="make it again"):
        open_store(short)
    np.save(short, np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match="float32"):
        open_store(short)
    np.save(short, np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="row 2"):
        Crops(short, table)

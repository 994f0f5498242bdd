import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images.crop import crop_photograph, cut
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import read_photograph
from drgrade.images.stage import crop_dataset
from drgrade.images.store import Crops
from drgrade.params import Crop


def eye(width=900, height=600, radius=280, spot=None):
    """A reddish disc in the middle, with a white spot (x, y, radius) on it."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[np.hypot(columns - width / 2, rows - height / 2) < radius] = 150, 90, 40
    if spot:
        picture[np.hypot(columns - spot[0], rows - spot[1]) < spot[2]] = 255
    return picture


def save(path: Path, picture, **options) -> Path:
    Image.fromarray(picture).save(path, **options)
    return path


class TestCut:
    def test_shrinks_by_exact_means(self):
        picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        crop = cut(picture, CropGeometry(10, 4, 42, 36, 8))
        blocks = picture[4:36, 10:42].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
        assert np.abs(crop - blocks).max() <= 0.5

    def test_is_black_outside(self):
        picture = np.full((20, 20, 3), 255, np.uint8)
        crop = cut(picture, CropGeometry(-10, 10, 30, 50, 40))
        expected = np.zeros((40, 40, 3), np.uint8)
        expected[:10, 10:30] = 255
        np.testing.assert_array_equal(crop, expected)
        assert cut(picture, CropGeometry(100, 100, 140, 140, 10)).max() == 0

    def test_stretches_to_the_square(self):
        picture = np.zeros((100, 200, 3), np.uint8)
        picture[:, 100:] = 200
        crop = cut(picture, CropGeometry(0, 0, 200, 100, 50))
        assert crop[:, :25].max() == 0
        assert crop[:, 25:].min() == 200


def centroid(picture):
    """Centre of the white spot to a fraction of a pixel: blue is 40 on the eye, 255 on the spot."""
    weight = (picture[..., 2].astype(float) - 44).clip(0)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([np.average(columns, weights=weight), np.average(rows, weights=weight)])


class TestCropPhotograph:
    @pytest.mark.parametrize("size", [64, 100, 200, 560])
    @pytest.mark.parametrize("name", ["eye.jpg", "eye.png"])
    def test_geometry_holds_at_every_decoding_scale(self, tmp_path, size, name):
        # 1201x803 is no multiple of 8: the last reduced column covers pixels that are not there
        path = save(tmp_path / name, eye(1201, 803, 390, spot=(730.0, 290.0, 40)), quality=95, subsampling=0)
        crop, geometry, rule = crop_photograph(path, Crop(size=size))
        assert rule == "disc"
        assert geometry.box == pytest.approx((210.5, 11.5, 990.5, 791.5), abs=16)
        spot = geometry.to_original(centroid(crop)[None])[0]
        assert spot == pytest.approx((730, 290), abs=0.6)

    def test_small_eye_in_a_large_photograph_keeps_its_detail(self, tmp_path):
        path = save(tmp_path / "far.jpg", eye(2000, 1400, 360), quality=90)
        crop, geometry, rule = crop_photograph(path, Crop(size=512))
        assert rule == "disc"
        assert geometry.box == pytest.approx((640, 340, 1360, 1060), abs=10)
        sharp = cut(read_photograph(path), geometry)
        np.testing.assert_array_equal(crop, sharp)

    def test_published_rule_is_exact_on_large_jpegs(self, tmp_path):
        path = save(tmp_path / "eye.jpg", eye(1500, 1000, 490), quality=100, subsampling=0)
        _, geometry, rule = crop_photograph(path, Crop(rule="o_O", aspect="squash", size=64))
        assert rule == "o_O"
        assert geometry.box == pytest.approx((258, 8, 1242, 992), abs=1)

    def test_pad_keeps_the_shape_and_squash_keeps_the_frame(self, tmp_path):
        path = save(tmp_path / "cut off.png", eye(1500, 1000, 600))
        _, pad, _ = crop_photograph(path, Crop(rule="o_O", size=64))
        _, squash, _ = crop_photograph(path, Crop(rule="o_O", aspect="squash", size=64))
        assert squash.box == (148, 0, 1352, 1000)
        assert pad.box == (148, -102, 1352, 1102)
        assert pad.scale_x == pad.scale_y
        _, disc, _ = crop_photograph(path, Crop(size=64))
        _, disc_squash, _ = crop_photograph(path, Crop(size=64, aspect="squash"))
        assert disc.box == pytest.approx((150, -100, 1350, 1100), abs=8)
        assert disc_squash.box == (disc.x0, 0, disc.x1, 1000)


def write_index(path, rows):
    table = pd.DataFrame(rows, columns=["image_id", "path", "status", "reason"])
    for column in schema.INDEX:
        if column not in table:
            table[column] = None
    schema.write_table(table, path, schema.INDEX)
    return path


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Ten photographs, two of them damaged, one listed as unreadable, one label without photograph."""
    raw = tmp_path / "raw"
    raw.mkdir()
    monkeypatch.setenv("DRGRADE_DEMO_ROOT", str(raw))
    rows = []
    for number in range(8):
        save(raw / f"{number}.jpg", eye(300 + 40 * number, 240, 100, spot=(150, 100 + 5 * number, 10)))
        rows.append((f"eye {number}", f"{number}.jpg", "ok" if number % 2 else "unlabelled", ""))
    (raw / "empty.jpg").touch()
    (raw / "cut.jpg").write_bytes((raw / "0.jpg").read_bytes()[:-500])
    rows.insert(2, ("empty", "empty.jpg", "ok", ""))
    rows.insert(5, ("cut", "cut.jpg", "ok", ""))
    rows.insert(3, ("bad", "bad.jpg", "unreadable", "not an image"))
    rows.append(("label only", None, "missing", "label without photograph"))
    return raw, write_index(tmp_path / "index.parquet", rows)


OPTIONS = Crop(size=48, max_failed_fraction=0.3)


class TestCropDataset:
    def run(self, dataset, folder, workers=1, options=OPTIONS):
        crop_dataset("demo", dataset[1], options, folder / "store.json", folder / "crops.parquet", workers)
        return folder / "store.json", folder / "crops.parquet"

    def test_a_row_for_each_row_of_the_index(self, dataset, tmp_path):
        store, path = self.run(dataset, tmp_path / "out")
        table = schema.read_table(path, schema.CROPS).set_index("image_id")
        assert list(table.index) == list(schema.read_table(dataset[1], schema.INDEX)["image_id"])
        failed = table[table["status"] == "failed"]["reason"].to_dict()
        assert failed == {
            "empty": "empty file",
            "cut": "truncated JPEG",
            "bad": "not an image",
            "label only": "label without photograph",
        }
        assert table.loc[list(failed), "row"].isna().all()
        crops = Crops(store, path)
        assert len(crops) == 8
        for number in range(8):
            image_id = f"eye {number}"
            expected, geometry, rule = crop_photograph(dataset[0] / f"{number}.jpg", OPTIONS)
            np.testing.assert_array_equal(crops[image_id], expected)
            assert crops.geometry(image_id) == geometry
            assert table.loc[image_id, "rule"] == rule
            assert table.loc[image_id, "scale"] == geometry.scale
        left = sorted(file.name for file in store.parent.iterdir())
        assert left == ["crops.parquet", "store", "store.json"]

    def test_output_does_not_depend_on_the_workers(self, dataset, tmp_path):
        one = self.run(dataset, tmp_path / "one", workers=1)
        three = self.run(dataset, tmp_path / "three", workers=3)
        assert [file.read_bytes() for file in one] == [file.read_bytes() for file in three]

    def test_stops_past_the_failed_fraction_and_leaves_nothing(self, dataset, tmp_path):
        strict = OPTIONS.model_copy(update={"max_failed_fraction": 0.2})
        # 3 of 11 photographs fail; the label without a photograph does not count
        with pytest.raises(UserError, match=r"3 of 11 photographs failed.*empty: empty file"):
            self.run(dataset, tmp_path / "out", options=strict)
        assert list((tmp_path / "out").iterdir()) == []

    def test_nothing_to_crop(self, dataset, tmp_path):
        index = write_index(tmp_path / "none.parquet", [("x", None, "missing", "label without photograph")])
        with pytest.raises(UserError, match="no readable photograph"):
            crop_dataset("demo", index, OPTIONS, tmp_path / "c.json", tmp_path / "c.parquet", 1)


REAL = Path(os.environ.get("DRGRADE_IDRID_ROOT", "no such folder"))


@pytest.mark.skipif(not REAL.is_dir(), reason="DRGRADE_IDRID_ROOT: no real photographs here")
def test_real_photographs_agree_with_the_published_box():
    paths = sorted(REAL.glob("*/1. Original Images/*/*.jpg"))[::12]
    assert len(paths) >= 10
    for path in paths:
        _, disc, rule = crop_photograph(path, Crop(size=512))
        _, published, _ = crop_photograph(path, Crop(rule="o_O", size=512))
        assert rule == "disc", path.name
        # IDRiD: the field of view is about 3420 of 4288 pixels wide, cut off at top and bottom
        assert 3350 < disc.x1 - disc.x0 < 3850, path.name
        assert (disc.x0, disc.x1) == pytest.approx((published.x0, published.x1), abs=60), path.name
        assert (disc.y0 + disc.y1) / 2 == pytest.approx(1424, abs=30), path.name

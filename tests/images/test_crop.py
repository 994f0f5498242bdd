from pathlib import Path

import cv2
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


def published_clpi(picture, side):
    """CLPI's preprocessing step by step: scale, middle, median, mask; and its box in original pixels."""
    height, width = picture.shape[:2]
    factor = side / min(width, height)
    scaled = round(width * factor), round(height * factor)
    middle = cv2.resize(picture, scaled, interpolation=cv2.INTER_CUBIC)
    left, top = (round((length - side) / 2.0) for length in scaled)
    middle = middle[top : top + side, left : left + side]
    background = cv2.medianBlur(np.ascontiguousarray(middle), 2 * int(side / 20) + 1).astype(int)
    stretched = (4 * middle.astype(int) - 4 * background + 128).clip(0, 255)
    disc = np.zeros((side, side, 1), np.uint8)
    cv2.circle(disc, (side // 2, side // 2), int(side * 90 / 200), 1, -1)
    corners = np.array([left, top, left + side, top + side])
    return disc * stretched, corners * np.tile([width / scaled[0], height / scaled[1]], 2)


class TestGrahamAndClpi:
    def test_graham_scales_the_published_radius_to_half_the_crop(self, tmp_path):
        path = save(tmp_path / "eye.png", eye(900, 600, 280, spot=(500.0, 250.0, 12)))
        crop, geometry, rule = crop_photograph(path, Crop(rule="graham", size=140))
        assert rule == "graham"
        assert geometry.box == (170, 20, 730, 580)
        # the spot alone differs from its surroundings, other than the disc's rim
        spot = (crop == 255).all(axis=2)
        rows, columns = np.nonzero(spot)
        place = geometry.to_original([[columns.mean() + 0.5, rows.mean() + 0.5]])[0]
        assert place == pytest.approx((500, 250), abs=4)
        assert (crop[0] == 128).all()
        assert crop[70, 20].tolist() == [128] * 3

    @pytest.mark.parametrize("aspect", ["pad", "squash"])
    def test_graham_has_no_seam_where_the_photograph_ends(self, tmp_path, aspect):
        flat = eye(900, 600, 400)
        path = save(tmp_path / "cut off.png", flat)
        crop, geometry, _ = crop_photograph(path, Crop(rule="graham", size=160, aspect=aspect))
        assert geometry.box == (50, -100, 850, 700)
        # a flat eye is flat grey to the top row that the photograph has, and beyond it
        assert (crop[:, 60:100] == 128).all()
        noise = np.random.default_rng(0).integers(-30, 30, flat.shape)
        path = save(
            tmp_path / "textured.png", np.where(flat > 0, flat + noise, 0).clip(0, 255).astype(np.uint8)
        )
        crop, _, _ = crop_photograph(path, Crop(rule="graham", size=160, aspect=aspect))
        for beyond, within in ((crop[:20], crop[20:22]), (crop[140:], crop[138:140])):
            assert (beyond == 128).all()
            assert within[:, 60:100].std() > 5

    def test_graham_falls_back_to_the_disc(self, tmp_path):
        picture = eye()
        picture[295:305, 200:] = 0  # a bar across the middle row
        path = save(tmp_path / "barred.png", picture)
        crop, geometry, rule = crop_photograph(path, Crop(rule="graham", size=64))
        assert rule == "graham:fallback_disc"
        assert geometry.box == pytest.approx((170, 20, 730, 580), abs=3)
        assert crop.shape == (64, 64, 3)

    @pytest.mark.parametrize(
        ("width", "height", "size"),
        [(150, 100, 64), (97, 143, 64), (69, 64, 64), (67, 64, 64), (60, 50, 128)],
    )
    def test_clpi_bit_for_bit(self, tmp_path, width, height, size):
        rng = np.random.default_rng(width)
        picture = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), (0, 0), 1.5)
        path = save(tmp_path / "noise.png", picture)
        crop, geometry, rule = crop_photograph(path, Crop(rule="clpi", size=size))
        expected, corners = published_clpi(picture, size)
        assert rule == "clpi"
        np.testing.assert_array_equal(crop, expected)
        assert geometry.box == pytest.approx(tuple(corners), abs=0.5)

    def test_clpi_rounds_half_offsets_to_even(self, tmp_path):
        for width, left in ((67, 2), (69, 2), (71, 4)):  # 1.5, 2.5, 3.5
            path = save(tmp_path / f"{width}.png", np.zeros((64, width, 3), np.uint8))
            _, geometry, _ = crop_photograph(path, Crop(rule="clpi", size=64))
            assert geometry.box == (left, 0, left + 64, 64)

    @pytest.mark.parametrize("rule", ["graham", "clpi"])
    def test_reduced_decoding_moves_nothing(self, tmp_path, rule):
        # not a multiple of 8: the last reduced column covers pixels that are not there
        picture = eye(1205, 803, 390, spot=(660.0, 300.0, 30))
        path = save(tmp_path / "eye.jpg", picture, quality=95, subsampling=0)
        whole = save(tmp_path / "eye.png", picture)
        for size in (64, 96):
            crop, geometry, _ = crop_photograph(path, Crop(rule=rule, size=size))
            _, exact, _ = crop_photograph(whole, Crop(rule=rule, size=size))
            assert np.abs(np.subtract(geometry.box, exact.box)).max() * exact.scale <= 1.3
            middle = geometry.to_crop([[660, 300]])[0].astype(int)
            assert (crop[middle[1], middle[0]] > 150).all()  # the spot; about it 128

    @pytest.mark.parametrize("rule", ["disc", "o_O", "graham", "clpi"])
    @pytest.mark.parametrize("shape", [(1, 1), (40, 160), (160, 40), (90, 131)])
    @pytest.mark.parametrize("level", [0, 5, 255])
    def test_no_picture_without_an_eye_stops_a_rule(self, tmp_path, rule, shape, level):
        path = save(tmp_path / "flat.png", np.full((*shape, 3), level, np.uint8))
        for aspect in ("pad", "squash"):
            crop, geometry, found_by = crop_photograph(path, Crop(rule=rule, size=32, aspect=aspect))
            assert crop.shape == (32, 32, 3)
            assert crop.dtype == np.uint8
            assert found_by.startswith(rule)
            x0, y0, x1, y1 = geometry.box
            assert x0 < shape[1]
            assert y0 < shape[0]
            assert min(x1, y1) > 0


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

    @pytest.mark.usefixtures("forked_pools")
    def test_output_does_not_depend_on_the_workers(self, dataset, tmp_path):
        one = self.run(dataset, tmp_path / "one", workers=1)
        three = self.run(dataset, tmp_path / "three", workers=3)
        assert [file.read_bytes() for file in one] == [file.read_bytes() for file in three]

    def test_stops_past_the_failed_fraction_and_leaves_no_outputs(self, dataset, tmp_path):
        strict = OPTIONS.model_copy(update={"max_failed_fraction": 0.2})
        # 3 of 11 photographs fail; the label without a photograph does not count
        with pytest.raises(UserError, match=r"3 of 11 photographs failed.*empty: empty file"):
            self.run(dataset, tmp_path / "out", options=strict)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".store.json.parts"]

    def test_nothing_to_crop(self, dataset, tmp_path):
        index = write_index(tmp_path / "none.parquet", [("x", None, "missing", "label without photograph")])
        with pytest.raises(UserError, match="no readable photograph"):
            crop_dataset("demo", index, OPTIONS, tmp_path / "c.json", tmp_path / "c.parquet", 1)


class TestRealPhotographs:
    """IDRiD: the field of view is about 3420 of 4288 pixels wide, cut off at top and bottom."""

    def crops(self, idrid, rule):
        paths = sorted(idrid.glob("*/1. Original Images/*/*.jpg"))[::36]
        assert len(paths) >= 10
        for path in paths:
            _, geometry, found_by = crop_photograph(path, Crop(rule=rule, size=512))
            assert found_by == rule, path.name
            yield path, geometry

    def test_disc_and_published_box_agree(self, idrid):
        for (path, disc), (_, published) in zip(
            self.crops(idrid, "disc"), self.crops(idrid, "o_O"), strict=True
        ):
            assert 3350 < disc.x1 - disc.x0 < 3850, path.name
            assert (disc.x0, disc.x1) == pytest.approx((published.x0, published.x1), abs=60), path.name
            assert (disc.y0 + disc.y1) / 2 == pytest.approx(1424, abs=30), path.name

    def test_graham_is_as_wide_as_the_disc_in_the_middle_of_the_photograph(self, idrid):
        for (path, disc), (_, graham) in zip(
            self.crops(idrid, "disc"), self.crops(idrid, "graham"), strict=True
        ):
            assert graham.x1 - graham.x0 == pytest.approx(disc.x1 - disc.x0, rel=0.05), path.name
            assert (graham.x0 + graham.x1) / 2 == pytest.approx(2144, abs=8), path.name

    def test_clpi_takes_the_middle(self, idrid):
        for path, clpi in self.crops(idrid, "clpi"):
            assert clpi.box == pytest.approx((720, 0, 3568, 2848), abs=4), path.name

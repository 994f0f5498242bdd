import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError, read_photograph
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


def ramp16():
    return (np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) * 12).astype(np.uint16)


class TestRead:
    def test_plain_modes(self, tmp_path):
        picture = eye(60, 40, 18)
        image = Image.fromarray(picture)
        image.save(tmp_path / "rgb.png")
        image.convert("RGBA").save(tmp_path / "rgba.png")
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
        image.save(tmp_path / "rgb.tiff")
        image.save(tmp_path / "rgb.bmp")
        for path in sorted(tmp_path.iterdir()):
            np.testing.assert_array_equal(read_photograph(path), picture, err_msg=path.name)

    def test_grey(self, tmp_path):
        grey = np.arange(240, dtype=np.uint8).reshape(12, 20)
        for name in ("grey.png", "grey.tif"):
            read = read_photograph(save(tmp_path / name, grey))
            np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, axis=2))

    @pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
    def test_sixteen_bit(self, tmp_path, name):
        deep = ramp16()
        read = read_photograph(save(tmp_path / name, deep))
        np.testing.assert_array_equal(read, np.repeat((deep // 256)[..., None], 3, axis=2))

    def test_sixteen_bit_colour(self, tmp_path):
        cv2 = pytest.importorskip("cv2")
        deep = np.dstack([ramp16(), ramp16()[::-1], ramp16()[:, ::-1]])
        for name in ("deep.png", "deep.tif"):
            cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
            difference = read_photograph(tmp_path / name) - deep / 257
            assert np.abs(difference).max() <= 1, name

    def test_cmyk(self, tmp_path):
        Image.fromarray(eye(96, 64, 30)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
        read = read_photograph(tmp_path / "cmyk.jpg")
        assert np.abs(read[32, 48].astype(int) - (150, 90, 40)).max() < 6
        assert read[2, 2].max() < 6

    def test_alpha_lies_over_black(self, tmp_path):
        rgba = np.full((4, 4, 4), 200, np.uint8)
        rgba[:2, :, 3] = 0
        rgba[2:, :, 3] = 255
        read = read_photograph(save(tmp_path / "alpha.png", rgba))
        assert read[:2].max() == 0
        assert read[2:].min() == 200

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, orientation):
        upright = eye(64, 48, 20, spot=(8, 8, 6))
        stored = {  # EXIF: where the stored first row and column belong in the upright picture
            1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
            5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / "turned.png", np.ascontiguousarray(stored), exif=exif)
        np.testing.assert_array_equal(read_photograph(path), upright)


class TestReadErrors:
    def reason(self, path):
        with pytest.raises(ReadError) as full:
            read_photograph(path)
        with pytest.raises(ReadError) as reduced:
            crop_photograph(path, Crop(size=32))
        assert str(full.value) == str(reduced.value)
        assert str(path.parent) not in str(full.value)
        return str(full.value)

    def jpeg(self, **options):
        noisy = eye() ^ np.random.default_rng(0).integers(0, 32, (600, 900, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", **options)
        return file.getvalue()

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
    def test_truncated_jpeg(self, tmp_path, kept, progressive):
        data = self.jpeg(progressive=progressive)
        path = tmp_path / "cut.jpg"
        path.write_bytes(data[: int(kept * len(data))])
        assert "truncated" in self.reason(path)

    def test_preallocated_but_unfinished_jpeg(self, tmp_path):
        data = self.jpeg()
        path = tmp_path / "zeros.jpg"
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
        assert "truncated" in self.reason(path)

    def test_truncated_jpeg_with_a_whole_thumbnail(self, tmp_path):
        thumbnail = io.BytesIO()
        Image.fromarray(eye(90, 60, 28)).save(thumbnail, "JPEG")
        segment = b"Exif\0\0" + thumbnail.getvalue()
        data = self.jpeg()
        data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
        (tmp_path / "whole.jpg").write_bytes(data)
        assert read_photograph(tmp_path / "whole.jpg").shape == (600, 900, 3)
        path = tmp_path / "cut.jpg"
        path.write_bytes(data[: len(data) * 3 // 4] + bytes(999))
        assert "truncated" in self.reason(path)

    @pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_other_formats_cut_short(self, tmp_path, suffix, kept):
        whole = save(tmp_path / f"whole.{suffix}", eye())
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
        self.reason(path)

    def test_empty_text_and_missing(self, tmp_path):
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("image,level\n10_left,0\n")
        assert self.reason(tmp_path / "empty.jpg") == "empty file"
        assert "not an image" in self.reason(tmp_path / "text.jpg")
        assert self.reason(tmp_path / "none.jpg") == "no such file or directory"

    @pytest.mark.parametrize("shape", [(50, 3000), (3000, 50), (9000, 8000)])
    def test_shapes_that_no_camera_makes(self, tmp_path, shape):
        path = save(tmp_path / "strip.png", np.zeros(shape, np.uint8))
        with pytest.raises(ReadError, match="no photograph of an eye"):
            read_photograph(path)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, on damaged TIFF tags
    def test_damaged_bytes_are_an_error_or_a_picture(self, tmp_path):
        rng = np.random.default_rng(0)
        path = tmp_path / "damaged"
        for suffix in ("JPEG", "PNG", "TIFF", "BMP") * 25:
            file = io.BytesIO()
            Image.fromarray(eye(180, 120, 50)).save(file, suffix)
            data = bytearray(file.getvalue())
            for place in rng.integers(0, min(len(data), 300), 3):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                crop, _, _ = crop_photograph(path, Crop(size=32))
            except ReadError:
                continue
            assert crop.shape == (32, 32, 3)

    def test_float_pixels(self, tmp_path):
        path = save(tmp_path / "float.tif", np.ones((8, 8), np.float32))
        assert "float" in self.reason(path)

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError, read_photograph, read_reduced, read_size
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
        deep = np.dstack([ramp16(), ramp16()[::-1], ramp16()[:, ::-1]])
        for name in ("deep.png", "deep.tif"):
            cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
            difference = read_photograph(tmp_path / name) - deep / 257
            assert np.abs(difference).max() <= 1, name

    @pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
    @pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
    def test_bits_of_a_sensor_in_a_file_of_sixteen(self, tmp_path, name, bits):
        grey = np.tile(np.linspace(0, (1 << bits) - 1, 90).astype(np.uint16), (60, 1))
        cv2.imwrite(str(tmp_path / name), np.dstack([grey, grey[::-1], grey[:, ::-1]])[..., ::-1])
        read = read_photograph(tmp_path / name)
        np.testing.assert_array_equal(read[..., 0], grey >> (bits - 8))
        np.testing.assert_array_equal(read[..., 2], grey[:, ::-1] >> (bits - 8))
        read = read_photograph(save(tmp_path / f"grey-{name}", grey))
        np.testing.assert_array_equal(read[..., 1], grey >> (bits - 8))

    def test_the_largest_page_of_a_tiff(self, tmp_path):
        pages = [Image.fromarray(eye(90, 60, 28)), Image.fromarray(eye()), Image.fromarray(eye(45, 30, 14))]
        path = tmp_path / "pages.tif"
        pages[0].save(path, save_all=True, append_images=pages[1:])
        np.testing.assert_array_equal(read_photograph(path), eye())
        assert read_size(path) == (900, 600)

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
        stored = {  # EXIF: where the stored first row and column belong in the upright image
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

    def test_what_is_appended_to_a_jpeg_does_not_matter(self, tmp_path):
        path = tmp_path / "appended.jpg"
        for options in ({}, {"progressive": True}):
            data = self.jpeg(**options)
            path.write_bytes(data)
            plain = read_photograph(path)
            path.write_bytes(data + b"a film, say: \xff\xd8\xff\xda" + bytes(999))
            np.testing.assert_array_equal(read_photograph(path), plain)
            path.write_bytes(data[:2] + b"\xff\xff\xff" + data[2:])  # a marker may be filled up
            np.testing.assert_array_equal(read_photograph(path), plain)

    @pytest.mark.parametrize("start", [0.3, 0.6, 0.9])
    @pytest.mark.parametrize("side", [None, 150])
    def test_a_hole_in_a_jpeg(self, tmp_path, start, side):
        """libjpeg warns of it and Pillow decodes it in silence: a photograph graded 2 became a 3."""
        data = self.jpeg()
        first = int(start * len(data))
        path = tmp_path / "hole.jpg"
        path.write_bytes(data[:first] + bytes(2000) + data[first + 2000 :])
        with pytest.raises(ReadError, match=r"damaged JPEG \(.+\)"):
            read_reduced(path, side)

    def test_a_hole_in_a_jpeg_of_four_colours(self, tmp_path):
        noisy = eye() ^ np.random.default_rng(0).integers(0, 32, (600, 900, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).convert("CMYK").save(file, "JPEG")
        data = file.getvalue()
        path = tmp_path / "cmyk.jpg"
        path.write_bytes(data)
        assert read_photograph(path).shape == (600, 900, 3)
        path.write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
        assert self.reason(path).startswith("damaged JPEG (")

    def test_a_jpeg_cut_before_an_end_marker(self, tmp_path):
        data = self.jpeg()
        path = tmp_path / "cut.jpg"
        path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
        assert self.reason(path) == "damaged JPEG (premature end of data segment)"

    def test_padding_before_the_end_of_a_jpeg_does_not_matter(self, tmp_path):
        data = self.jpeg()
        path = tmp_path / "padded.jpg"
        path.write_bytes(data)
        plain = read_photograph(path)
        path.write_bytes(data[:-2] + bytes(16) + data[-2:])
        np.testing.assert_array_equal(read_photograph(path), plain)

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
    @pytest.mark.parametrize("factor", [1, 2, 4, 8])
    def test_jpegs_have_the_pixels_of_pillow(self, tmp_path, options, factor):
        data = self.jpeg(quality=88, **options)
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        picture, used = read_reduced(path, 600 / factor)
        image = Image.open(io.BytesIO(data))
        if factor > 1:
            image.draft(None, (900 // factor, 600 // factor))
        assert used == factor
        np.testing.assert_array_equal(picture, np.asarray(image))

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


UNCOMPRESSED = "1.2.840.10008.1.2.1"
BASELINE_JPEG = "1.2.840.10008.1.2.4.50"


def dicom(path: Path, pixels, kind: str, bits=8, syntax=UNCOMPRESSED, data=None, **tags) -> Path:
    """A photograph as a hospital's archive exports it; ``data`` takes the place of the array's own bytes."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"  # ophthalmic photography, 8 bit
    found.SOPInstanceUID = "1.2.3"
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    found.PhotometricInterpretation = kind
    found.BitsAllocated, found.BitsStored, found.HighBit = 8 * pixels.itemsize, bits, bits - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(found, name, value)
    data = pixels.tobytes() if data is None else data
    found.PixelData = data if syntax == UNCOMPRESSED else encapsulate([data])
    found["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    found.save_as(path, enforce_file_format=True)
    return path


def jpeg_of(picture, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


def grey_rgb(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


class TestDicom:
    noise = np.random.default_rng(5).integers(0, 256, (40, 60, 3)).astype(np.uint8)

    @pytest.mark.parametrize("name", ["a.dcm", "a.DCM", "IM0001", "wrong.jpg"])
    def test_colour_is_read_whatever_the_file_is_called(self, tmp_path, name):
        path = dicom(tmp_path / name, self.noise, "RGB")
        np.testing.assert_array_equal(read_photograph(path), self.noise)
        assert read_size(path) == (60, 40)

    def test_planes_one_after_the_other(self, tmp_path):
        planes = self.noise.transpose(2, 0, 1).tobytes()
        path = dicom(tmp_path / "a.dcm", self.noise, "RGB", data=planes, PlanarConfiguration=1)
        np.testing.assert_array_equal(read_photograph(path), self.noise)

    def test_grey_and_inverted_grey(self, tmp_path):
        grey = self.noise[..., 0]
        np.testing.assert_array_equal(
            read_photograph(dicom(tmp_path / "2.dcm", grey, "MONOCHROME2")), grey_rgb(grey)
        )
        np.testing.assert_array_equal(
            read_photograph(dicom(tmp_path / "1.dcm", grey, "MONOCHROME1")), grey_rgb(255 - grey)
        )

    @pytest.mark.parametrize(("bits", "step"), [(16, 256), (12, 16), (10, 4)])
    def test_deep_grey_is_scaled_by_its_stored_bits(self, tmp_path, bits, step):
        deep = np.random.default_rng(1).integers(0, 2**bits, (30, 40)).astype(np.uint16)
        read = read_photograph(dicom(tmp_path / "a.dcm", deep, "MONOCHROME2", bits))
        np.testing.assert_array_equal(read, grey_rgb(deep // step))

    def test_signed_grey(self, tmp_path):
        signed = np.array([[-32768, -1, 0, 32767]] * 4, np.int16)
        read = read_photograph(dicom(tmp_path / "a.dcm", signed, "MONOCHROME2", 16))
        np.testing.assert_array_equal(read[0, :, 0], [0, 127, 128, 255])

    def test_deep_colour(self, tmp_path):
        deep = np.random.default_rng(2).integers(0, 2**16, (30, 40, 3)).astype(np.uint16)
        read = read_photograph(dicom(tmp_path / "a.dcm", deep, "RGB", 16))
        np.testing.assert_array_equal(read, deep // 256)

    def test_luminance_and_chroma(self, tmp_path):
        """DICOM PS3.3 C.7.6.3.1.2: full range, centred at 128."""
        y, cb, cr = (self.noise[..., n].astype(float) for n in range(3))
        expected = np.dstack([
            y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
        ]).clip(0, 255)  # fmt: skip
        read = read_photograph(dicom(tmp_path / "a.dcm", self.noise, "YBR_FULL"))
        assert np.abs(read - expected).max() <= 1
        # 4:2:2: two pixels of a row share their chroma, stored Y Y Cb Cr
        paired = self.noise.copy()
        paired[:, 1::2, 1:] = paired[:, ::2, 1:]
        data = np.dstack([paired[:, ::2, 0], paired[:, 1::2, 0], paired[:, ::2, 1], paired[:, ::2, 2]])
        full = read_photograph(dicom(tmp_path / "b.dcm", paired, "YBR_FULL"))
        half = read_photograph(dicom(tmp_path / "c.dcm", paired, "YBR_FULL_422", data=data.tobytes()))
        np.testing.assert_array_equal(half, full)

    def test_palette(self, tmp_path):
        table = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint16)
        tags = {}
        for n, name in enumerate(("Red", "Green", "Blue")):
            tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            tags[f"{name}PaletteColorLookupTableData"] = (table[:, n] * 257).tobytes()
        indices = self.noise[..., 0]
        read = read_photograph(dicom(tmp_path / "a.dcm", indices, "PALETTE COLOR", **tags))
        np.testing.assert_array_equal(read, table[indices])

    def test_jpeg_inside(self, tmp_path):
        picture = eye()
        data = jpeg_of(picture, quality=92)
        path = dicom(tmp_path / "a.dcm", picture, "YBR_FULL_422", syntax=BASELINE_JPEG, data=data)
        np.testing.assert_array_equal(read_photograph(path), np.asarray(Image.open(io.BytesIO(data))))
        assert read_size(path) == (900, 600)

    def test_subsampled_colour_is_no_rgb_whatever_the_tag_says(self, tmp_path):
        data = jpeg_of(eye(), quality=92, subsampling=2)
        path = dicom(tmp_path / "a.dcm", eye(), "RGB", syntax=BASELINE_JPEG, data=data)
        np.testing.assert_array_equal(read_photograph(path), np.asarray(Image.open(io.BytesIO(data))))

    def test_a_hole_in_a_jpeg_inside(self, tmp_path):
        noisy = eye() ^ np.random.default_rng(0).integers(0, 32, (600, 900, 3)).astype(np.uint8)
        data = jpeg_of(noisy)
        holed = data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :]
        path = dicom(tmp_path / "a.dcm", noisy, "YBR_FULL_422", syntax=BASELINE_JPEG, data=holed)
        assert self.reason(path).startswith("damaged JPEG (")

    def reason(self, path):
        with pytest.raises(ReadError) as error:
            read_photograph(path)
        assert str(path.parent) not in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
    def test_truncated(self, tmp_path, kept):
        whole = dicom(tmp_path / "a.dcm", self.noise, "RGB").read_bytes()
        path = tmp_path / "cut.dcm"
        path.write_bytes(whole[: len(whole) - int((1 - kept) * self.noise.size)])
        assert self.reason(path) == "truncated DICOM"
        assert read_size(path) == (60, 40)  # the header is whole

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, on the same
    @pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
    def test_truncated_jpeg_inside(self, tmp_path, kept):
        noisy = eye() ^ np.random.default_rng(0).integers(0, 32, (600, 900, 3)).astype(np.uint8)
        data = jpeg_of(noisy)
        path = dicom(tmp_path / "a.dcm", noisy, "YBR_FULL_422", syntax=BASELINE_JPEG, data=data)
        short = dicom(
            tmp_path / "b.dcm",
            noisy,
            "YBR_FULL_422",
            syntax=BASELINE_JPEG,
            data=data[: int(kept * len(data))],
        )
        assert "truncated" in self.reason(short)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        self.reason(path)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, on a file that is none
    def test_what_is_no_single_picture(self, tmp_path):
        film = dicom(
            tmp_path / "film.dcm", self.noise, "RGB", data=self.noise.tobytes() * 2, NumberOfFrames=2
        )
        assert self.reason(film) == "DICOM of 2 frames; export the photograph alone"
        with pytest.raises(ReadError, match="2 frames"):
            read_size(film)
        (tmp_path / "text.dcm").write_text("no DICOM at all, and rather short")
        (tmp_path / "empty.dcm").touch()
        header = dicom(tmp_path / "header.dcm", self.noise, "RGB", data=b"").read_bytes()
        (tmp_path / "cut.dcm").write_bytes(header[:160])
        assert "not a DICOM image" in self.reason(tmp_path / "text.dcm")
        assert "not a DICOM image" in self.reason(tmp_path / "cut.dcm")
        assert self.reason(tmp_path / "empty.dcm") == "empty file"
        for name in ("text.dcm", "cut.dcm", "empty.dcm"):
            with pytest.raises(ReadError, match=r"not a DICOM|empty file"):
                read_size(tmp_path / name)

    def test_what_cannot_be_decoded_here_is_named(self, tmp_path):
        lossless = "1.2.840.10008.1.2.4.80"
        path = dicom(tmp_path / "a.dcm", self.noise, "RGB", syntax=lossless, data=b"\xff\xd8\xff\xd9")
        assert "JPEG-LS" in self.reason(path)

    @pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # pydicom, on damaged tags
    def test_damaged_bytes_are_an_error_or_a_picture(self, tmp_path):
        rng = np.random.default_rng(0)
        whole = dicom(tmp_path / "a.dcm", self.noise, "RGB").read_bytes()
        path = tmp_path / "damaged.dcm"
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(128, len(whole) - self.noise.size, 3):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                width, height = read_size(path)
                picture = read_photograph(path)
            except ReadError:
                continue
            assert picture.shape == (height, width, 3)
            assert picture.dtype == np.uint8


class TestSize:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
    def test_is_that_of_the_picture_as_read(self, tmp_path, name, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / name, eye(64, 48, 20), exif=exif)
        height, width = read_photograph(path).shape[:2]
        assert read_size(path) == (width, height)
        assert (width, height) == ((48, 64) if orientation >= 5 else (64, 48))

    def test_comes_from_the_header_alone(self, tmp_path):
        path = save(tmp_path / "a.jpg", eye())
        path.write_bytes(path.read_bytes()[:700])
        assert read_size(path) == (900, 600)

    def test_reasons(self, tmp_path):
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("image,level")
        (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0")
        reasons = {}
        for name in ("empty.jpg", "text.jpg", "cut.png", "none.jpg", "none.dcm"):
            with pytest.raises(ReadError) as error:
                read_size(tmp_path / name)
            reasons[name] = str(error.value)
        assert reasons["empty.jpg"] == "empty file"
        assert reasons["text.jpg"] == "not an image"
        assert reasons["none.jpg"] == reasons["none.dcm"] == "no such file or directory"
        assert reasons["cut.png"]

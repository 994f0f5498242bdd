"""Read photographs of any mode, orientation and bit depth; refuse damaged ones.

DICOM files, as exported by hospital archives, are supported. JPEGs can be decoded at a half, quarter or
eighth of their resolution, without decoding the full-size image.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from drgrade.faults import of_machine
from drgrade.images import jpeg
from drgrade.images.rules import RGBImage
from drgrade.messages import printable

if TYPE_CHECKING:
    import pydicom

ORIENTATION = 0x0112  # EXIF tag
MOST_PIXELS = 64_000_000
LONGEST = 4
"""Maximum number of pixels and aspect ratio; larger values come from other images or damaged headers."""


MOST_PAGES = 100
"""Maximum number of TIFF pages that are searched for the largest."""
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transformation to the upright image, by EXIF orientation."""
DICM = slice(128, 132)
"""Position of the letters DICM in a DICOM file."""
JPEG_SYNTAXES = "1.2.840.10008.1.2.4.5"
"""Prefix of the DICOM transfer syntaxes with JPEG streams."""
BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
DEFLATED = re.compile(rb"\x02\x00\x10\x00.{4,10}1\.2\.840\.10008\.1\.2\.1\.99", re.DOTALL)
"""The transfer syntax of a DICOM file whose elements are compressed all together."""
JPEGS = ("JPEG", "MPO")
"""Pillow's names of JPEG files: with one image, and with several."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Formats that are tried. Pillow knows many more, and starts Ghostscript for one of them."""


class ReadError(Exception):
    """A photograph cannot be read; the message is a short reason for a table, on one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))  # decoders quote what they find in the file


class PhotographFile:
    """A photograph that is read once, and decoded once at each resolution.

    Args:
        file: its path, or its content.
    """

    def __init__(self, file: Path | bytes) -> None:
        self._file = file
        self._decoded: dict[int, RGBImage] = {}

    @cached_property
    def data(self) -> bytes:
        """Content of the file.

        Raises:
            ReadError: it is missing or empty.
        """
        try:
            data = self._file if isinstance(self._file, bytes) else self._file.read_bytes()
        except OSError as error:
            if of_machine(error):
                raise
            raise ReadError((error.strerror or type(error).__name__).lower()) from None
        if not data:
            raise ReadError("empty file")
        return data

    def size(self) -> tuple[int, int]:
        """Width and height in pixels as displayed; only the header is decoded.

        Raises:
            ReadError: see :func:`read_size`.
        """
        return _dicom_size(self.data) if self._is_dicom() else _header_size(self.data)

    def reduced(self, side: float | None) -> tuple[RGBImage, int]:
        """Decode, see :func:`read_reduced`.

        Raises:
            ReadError: see :func:`read_photograph`.
        """
        with _decoding():
            factor = 1 if self._is_dicom() else _reduction(self.data, side)
            if factor not in self._decoded:
                image = _read_dicom(self.data) if self._is_dicom() else _decode(self.data, factor)
                self._decoded[factor] = image
        return self._decoded[factor], factor

    def _is_dicom(self) -> bool:
        named = isinstance(self._file, Path) and self._file.suffix.lower() == ".dcm"
        return named or self.data[DICM] == b"DICM"


def opened(photograph: Path | PhotographFile) -> PhotographFile:
    """Return the file of a path, or the file that is given."""
    return photograph if isinstance(photograph, PhotographFile) else PhotographFile(photograph)


def read_photograph(path: Path) -> RGBImage:
    """Decode a photograph: grey, palette, alpha (over black), CMYK, 16 bit; rotated by EXIF orientation.

    Values of 16-bit PNG and TIFF files are scaled to 8 bits from the smallest of 8, 10, 12, 14 and 16 bits
    that holds the maximum. Of a TIFF with several pages the largest is read.

    DICOM: one frame, MONOCHROME1 and 2, RGB, YBR_FULL, YBR_FULL_422 or PALETTE COLOR; uncompressed, RLE or
    decodable by Pillow (JPEG baseline and extended, JPEG 2000); the stored bits are scaled to 8 without
    windowing or rescale slope.

    Returns:
        uint8 RGB (H, W, 3) at full resolution.

    Raises:
        ReadError: the file is missing, empty, not an image, truncated, or has an implausible size or shape.
    """
    return read_reduced(path, None)[0]


def read_reduced(path: Path, side: float | None) -> tuple[RGBImage, int]:
    """Decode at the lowest resolution whose shorter side is at least ``side`` pixels.

    Args:
        path: a photograph; only JPEGs can be decoded at reduced resolution.
        side: minimum shorter side in pixels; None: full resolution.

    Returns:
        uint8 RGB (H, W, 3), and the factor: 1, 2, 4 or 8.

    Raises:
        ReadError: see :func:`read_photograph`.
    """
    return PhotographFile(path).reduced(side)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a photograph as displayed; only the header is decoded.

    Raises:
        ReadError: the file is missing, empty, not an image, has a damaged header, or is a DICOM file with
            other than one frame.
    """
    return PhotographFile(path).size()


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn the errors of decoders into a ReadError."""
    try:
        yield
    except jpeg.DamagedError as error:
        raise ReadError(str(error)) from None
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError("not an image, or cut off in its header") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        if "truncated" in str(error):
            raise ReadError("truncated image") from None
        raise ReadError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _reduction(data: bytes, side: float | None) -> int:
    """Return the factor by which a file's resolution can be reduced, by its header."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _seek_largest(image)
        _check_shape(*image.size)
        # turned images may start inside a reduced pixel
        reducible = _is_plain_jpeg(image) and _orientation(image) == 1
        return _factor(image.size, side) if reducible else 1


def _decode(data: bytes, factor: int) -> RGBImage:
    """Decode a file that is not DICOM; ``factor`` is that of :func:`_reduction`."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _seek_largest(image)
        if _is_plain_jpeg(image):
            return _upright(jpeg.decode(data, factor), _orientation(image))
        if image.format in JPEGS:
            jpeg.check(data)
        deep = _is_deep_colour(image)
        image.load()
        return _deep_colour(data, image.size) if deep else _upright_rgb(image)


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an image is a JPEG in grey or colours, which :mod:`.jpeg` decodes."""
    return image.format in JPEGS and image.mode in ("RGB", "L")


def _header_size(data: bytes) -> tuple[int, int]:
    """Size of a file that is not DICOM."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _seek_largest(image)
            width, height = image.size
            turned = image.format != "TIFF" and _orientation(image) >= 5  # for TIFF, Pillow swaps the size
            return (height, width) if turned else (width, height)
    except UnidentifiedImageError:
        raise ReadError("not an image") from None
    except OSError as error:
        raise ReadError((error.strerror or str(error)).lower()) from None
    except Exception as error:  # broken headers raise SyntaxError, TypeError, ValueError, struct.error, ...
        raise ReadError(f"unreadable header: {error}") from None


def _check_shape(width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > LONGEST * min(width, height):
        raise ReadError(f"{width}x{height} pixels are no photograph of an eye")


def _seek_largest(image: ImageFile.ImageFile) -> None:
    """Seek to the largest page of a TIFF, as the first one may be a thumbnail."""
    if image.format != "TIFF":
        return
    areas = [image.width * image.height]
    with suppress(EOFError):  # no more pages; to count them, n_frames would read all, which may be millions
        for page in range(1, MOST_PAGES):
            image.seek(page)
            areas.append(image.width * image.height)
    image.seek(int(np.argmax(areas)))


def _factor(size: tuple[int, int], side: float | None) -> int:
    """The largest of 1, 2, 4 and 8 for which the shorter side divided by it is at least ``side``."""
    return next((factor for factor in (8, 4, 2) if side is not None and min(size) / factor >= side), 1)


def _upright(picture: RGBImage, orientation: int) -> RGBImage:
    if orientation not in TRANSPOSES:
        return picture
    return np.asarray(Image.fromarray(picture).transpose(TRANSPOSES[orientation]))


def _is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would drop the lower 8 bits of 16-bit colours."""
    return image.mode in ("RGB", "RGBA") and any("16" in str(tile.args) for tile in image.tile)


def _deep_colour(data: bytes, size: tuple[int, int]) -> RGBImage:
    """Decode a PNG or TIFF with 16-bit colours to uint8 RGB, scaled by :func:`_stored_bits`.

    OpenCV turns it upright, and reads the first page only: ``size`` is that of the page to be read.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None or sorted(pixels.shape[:2]) != sorted(size):
        raise ReadError("cannot be decoded (16-bit colours of an unusual kind)")
    return _eight_bits(pixels[..., ::-1], _stored_bits(pixels))


def _stored_bits(pixels: np.ndarray) -> int:
    """Number of bits, 8, 10, 12, 14 or 16, that holds the maximum of 16-bit pixels.

    A 16-bit file does not record how many bits its camera used.
    """
    return next(bits for bits in (8, 10, 12, 14, 16) if int(pixels.max()) < 1 << bits)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not affect the pixels
        return 1


def _upright_rgb(image: Image.Image) -> RGBImage:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ReadError("32-bit float pixels have no agreed range; convert to 8 or 16 bit")
    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535).astype(np.uint16)
        grey = _eight_bits(deep, _stored_bits(deep))
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _open_dicom(data: bytes, header: bool) -> "pydicom.Dataset":
    """Open a DICOM file with one image; without the pixels if only the ``header`` is needed."""
    import pydicom

    if DEFLATED.search(data):  # a small file may contain gigabytes, which pydicom would unpack at once
        raise ReadError("DICOM compressed as a whole (deflated); export it uncompressed or as JPEG")
    try:
        # force, as some files lack the preamble
        found = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=header, force=True)
        size, frames = (int(found.Columns), int(found.Rows)), int(found.get("NumberOfFrames") or 1)
    except Exception:  # damaged files raise many types
        raise ReadError("not a DICOM image, or cut off in its header") from None
    if frames != 1:
        raise ReadError(f"DICOM of {frames} frames; export the photograph alone")
    if min(size) < 1:
        raise ReadError("DICOM without pixels")
    return found


def _dicom_size(data: bytes) -> tuple[int, int]:
    found = _open_dicom(data, header=True)
    return int(found.Columns), int(found.Rows)


def _read_dicom(data: bytes) -> RGBImage:
    """Decode a DICOM photograph to uint8 RGB (H, W, 3)."""
    from pydicom.pixels import apply_color_lut, pixel_array

    found = _open_dicom(data, header=False)
    columns, rows = int(found.Columns), int(found.Rows)
    _check_shape(columns, rows)
    if "PixelData" not in found:
        raise ReadError("DICOM without pixels")
    try:
        syntax = str(getattr(found.file_meta, "TransferSyntaxUID", ""))
        stored = found.PixelData
        kind = found.PhotometricInterpretation
        if syntax.startswith(JPEG_SYNTAXES):
            stream = stored[stored.find(b"\xff\xd8\xff") :]
            if (size := jpeg.size(stream)) != (columns, rows):
                raise ReadError(f"DICOM with a JPEG of another size, {size[0]}x{size[1]} pixels")
            decoded = _checked(stream, syntax)
            if decoded is not None and kind == "RGB" and jpeg.is_subsampled(stream):
                return decoded  # YCbCr whatever the tag says
        pixels, bits = pixel_array(found), int(found.BitsStored)
        if pixels.shape not in ((rows, columns), (rows, columns, 3)):
            raise ReadError(f"DICOM with pixels of shape {'x'.join(map(str, pixels.shape))}")
        if kind == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, found)
            bits = 8 * pixels.dtype.itemsize
        elif found.get("PixelRepresentation") == 1:
            pixels = pixels.astype(np.int64) + (1 << (bits - 1))
    except ReadError:
        raise
    except jpeg.DamagedError as error:
        raise ReadError(str(error)) from None
    except Exception as error:  # pydicom and its decoders raise AttributeError, ValueError, RuntimeError, ...
        text = str(error)
        if "truncated" in text or "less than expected" in text:
            raise ReadError("truncated DICOM") from None
        if isinstance(error, RuntimeError):  # no decoder for it
            raise ReadError(f"no decoder for DICOM of {found.file_meta.TransferSyntaxUID.name}") from None
        raise ReadError(f"cannot be decoded ({type(error).__name__}: {text})") from None
    picture = _eight_bits(pixels, bits)
    if kind == "MONOCHROME1":  # the lowest value is white
        picture = 255 - picture
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _checked(stream: bytes, syntax: str) -> RGBImage | None:
    """Decode an 8-bit JPEG stream, refusing damaged ones; None if libjpeg does not support it."""
    if syntax == BASELINE_JPEG:
        return jpeg.decode(stream)
    jpeg.check_scans(stream)
    return None


def _eight_bits(pixels: np.ndarray, bits: int) -> RGBImage:
    """Scale values of ``bits`` stored bits to 0-255."""
    if bits > 8:
        return (pixels >> (bits - 8)).clip(0, 255).astype(np.uint8)
    return (pixels.clip(0, (1 << bits) - 1) * (255 // ((1 << bits) - 1))).astype(np.uint8)

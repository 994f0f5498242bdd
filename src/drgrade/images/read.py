"""Read photographs of any mode, orientation and depth; refuse damaged ones.

Photographs may be DICOM files, as the image archives of hospitals export them. JPEGs can be decoded at a
half, quarter or eighth of their resolution, so the full-size image never exists.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from drgrade.images.rules import Picture

if TYPE_CHECKING:
    import pydicom

ORIENTATION = 0x0112  # EXIF tag
MOST_PIXELS = 64_000_000
LONGEST = 4
"""Larger or longer (longer by shorter side) images are not of an eye; damaged headers make such claims."""


DICM = slice(128, 132)
"""Where the letters DICM stand in a DICOM file."""
JPEG_SYNTAXES = "1.2.840.10008.1.2.4.5"
"""Start of the DICOM transfer syntaxes that hold JPEG streams."""


class ReadError(Exception):
    """A photograph cannot be read; the message is the reason, fit for a table."""


def read_photograph(path: Path) -> Picture:
    """Decode a photograph of any mode: grey, palette, alpha (over black), CMYK, 16 bit; EXIF-turned upright.

    DICOM: one frame, MONOCHROME1 and 2, RGB, YBR_FULL, YBR_FULL_422 or PALETTE COLOR, uncompressed, RLE or
    what Pillow decodes (JPEG baseline and extended, JPEG 2000); its stored bits are scaled to 8, without
    window or rescaling.

    Returns:
        uint8 RGB (H, W, 3) at full resolution.

    Raises:
        ReadError: no such file, empty, not an image, cut short, or of a size or shape no camera makes.
    """
    return read_reduced(path, None)[0]


def read_reduced(path: Path, side: float | None) -> tuple[Picture, int]:
    """Decode at 1/factor of the resolution, as small as a shorter side of ``side`` pixels allows.

    Args:
        path: a photograph; only JPEGs can be decoded smaller than they are.
        side: pixels wanted along the shorter side; None asks for the full resolution.

    Returns:
        uint8 RGB (H, W, 3), and the factor: 1, 2, 4 or 8.

    Raises:
        ReadError: as :func:`read_photograph`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReadError((error.strerror or type(error).__name__).lower()) from None
    if not data:
        raise ReadError("empty file")
    if data[DICM] == b"DICM" or path.suffix.lower() == ".dcm":
        return _read_dicom(data), 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO") and _has_no_end(data):
                raise ReadError("truncated JPEG")
            factor = _reduce(image, side)
            _check_shape(*image.size)
            image.load()
            return _upright_rgb(image), factor
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError("not an image, or cut off in its header") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        if "truncated" in str(error):
            raise ReadError("truncated image") from None
        raise ReadError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a photograph as displayed, from its header alone.

    Raises:
        ReadError: no such file, empty, not an image, a damaged header, or a DICOM file without one frame.
    """
    try:
        if path.suffix.lower() == ".dcm":
            return _dicom_size(path)
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except ReadError:
        raise
    except UnidentifiedImageError:
        pass
    except OSError as error:
        raise ReadError((error.strerror or " ".join(str(error).split())).lower()) from None
    except Exception as error:  # broken headers raise SyntaxError, TypeError, ValueError, struct.error, ...
        raise ReadError(f"unreadable header: {' '.join(str(error).split())}") from None
    with path.open("rb") as file:
        start = file.read(DICM.stop)
    if start[DICM] == b"DICM":
        return _dicom_size(path)
    raise ReadError("not an image" if start else "empty file")


def _has_no_end(jpeg: bytes) -> bool:
    """Whether the stream of a JPEG lacks its end; libjpeg fills a zeroed tail with grey and says nothing.

    Looked for behind the header, which may hold a thumbnail with an end of its own; what some cameras append
    behind the end does not matter.
    """
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":  # up to the start of the scan
        filled = jpeg[at + 1 : at + 2] == b"\xff"
        at += 1 if filled else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg.find(b"\xff\xd9", at) < 0


def _check_shape(width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > LONGEST * min(width, height):
        raise ReadError(f"{width}x{height} pixels are no photograph of an eye")


def _reduce(image: Image.Image, side: float | None) -> int:
    """Ask libjpeg for the smallest scale whose shorter side is at least ``side``; returns 1, 2, 4 or 8."""
    width, height = image.size
    if side is None or _orientation(image) != 1:  # turned images may not start on a whole reduced pixel
        return 1
    for factor in (8, 4, 2):
        if min(width, height) / factor >= side:
            image.draft(None, (width // factor, height // factor))
            return factor if image.size == (-(-width // factor), -(-height // factor)) else 1
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not spoil the image
        return 1


def _upright_rgb(image: Image.Image) -> Picture:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ReadError("32-bit float pixels have no agreed range; convert to 8 or 16 bit")
    if image.mode.startswith("I"):
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _open_dicom(file: Path | io.BytesIO, header: bool) -> "pydicom.Dataset":
    """A DICOM file that holds one image; without its pixels when only the ``header`` is wanted."""
    import pydicom

    try:
        found = pydicom.dcmread(file, stop_before_pixels=header, force=True)  # some lack the preamble
        size, frames = (int(found.Columns), int(found.Rows)), int(found.get("NumberOfFrames") or 1)
    except OSError as error:
        raise ReadError((error.strerror or str(error)).lower()) from None
    except Exception:  # of a damaged file, anything
        raise ReadError("not a DICOM picture, or cut off in its header") from None
    if frames != 1:
        raise ReadError(f"DICOM of {frames} frames; export the photograph alone")
    if min(size) < 1:
        raise ReadError("DICOM without pixels")
    return found


def _dicom_size(path: Path) -> tuple[int, int]:
    if path.stat().st_size == 0:
        raise ReadError("empty file")
    found = _open_dicom(path, header=True)
    return int(found.Columns), int(found.Rows)


def _read_dicom(data: bytes) -> Picture:
    """uint8 RGB (H, W, 3) of a DICOM photograph."""
    from pydicom.pixels import apply_color_lut, pixel_array

    found = _open_dicom(io.BytesIO(data), header=False)
    _check_shape(int(found.Columns), int(found.Rows))
    if "PixelData" not in found:
        raise ReadError("DICOM without pixels")
    try:
        syntax = str(getattr(found.file_meta, "TransferSyntaxUID", ""))
        stored = found.PixelData
        if syntax.startswith(JPEG_SYNTAXES) and _has_no_end(stored[stored.find(b"\xff\xd8\xff") :]):
            raise ReadError("truncated JPEG")
        pixels, bits = pixel_array(found), int(found.BitsStored)
        kind = found.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, found)
            bits = 8 * pixels.dtype.itemsize
        elif found.get("PixelRepresentation") == 1:
            pixels = pixels.astype(np.int64) + (1 << (bits - 1))
    except ReadError:
        raise
    except Exception as error:  # pydicom and its decoders raise AttributeError, ValueError, RuntimeError, ...
        text = " ".join(str(error).split())
        if "truncated" in text or "less than expected" in text:
            raise ReadError("truncated DICOM") from None
        if isinstance(error, RuntimeError):  # no decoder for it
            raise ReadError(f"no decoder for DICOM of {found.file_meta.TransferSyntaxUID.name}") from None
        raise ReadError(f"cannot be decoded ({type(error).__name__}: {text})") from None
    picture = _eight_bits(pixels, bits)
    if kind == "MONOCHROME1":  # the lowest value is white
        picture = 255 - picture
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def _eight_bits(pixels: np.ndarray, bits: int) -> Picture:
    """Values of ``bits`` stored bits, scaled to 0-255."""
    if bits > 8:
        return (pixels >> (bits - 8)).clip(0, 255).astype(np.uint8)
    return (pixels.clip(0, (1 << bits) - 1) * (255 // ((1 << bits) - 1))).astype(np.uint8)

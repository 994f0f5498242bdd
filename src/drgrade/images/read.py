"""Read whatever a camera or an archive holds: every mode, orientation and depth, and never a broken picture.

JPEGs can be decoded at a half, quarter or eighth of their resolution, so the full-size picture never exists.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from drgrade.images.rules import Picture

ORIENTATION = 0x0112  # EXIF tag
MOST_PIXELS = 64_000_000
LONGEST = 4
"""Larger or longer (longer by shorter side) pictures are not of an eye; damaged headers make such claims."""


class ReadError(Exception):
    """A photograph cannot be read; the message is the reason, fit for a table."""


def read_photograph(path: Path) -> Picture:
    """Decode a photograph of any mode: grey, palette, alpha (over black), CMYK, 16 bit; EXIF-turned upright.

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
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                raise ReadError("truncated JPEG")  # libjpeg fills a zeroed tail with grey and says nothing
            factor = _reduce(image, side)
            width, height = image.size
            if width * height > MOST_PIXELS or max(width, height) > LONGEST * min(width, height):
                raise ReadError(f"{width}x{height} pixels are no photograph of an eye")
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


def _reduce(image: Image.Image, side: float | None) -> int:
    """Ask libjpeg for the smallest scale whose shorter side is at least ``side``; returns 1, 2, 4 or 8."""
    width, height = image.size
    if side is None or _orientation(image) != 1:  # turned pictures may not start on a whole reduced pixel
        return 1
    for factor in (8, 4, 2):
        if min(width, height) / factor >= side:
            image.draft(None, (width // factor, height // factor))
            return factor if image.size == (-(-width // factor), -(-height // factor)) else 1
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not spoil the picture
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

"""Decode JPEG streams, at full or reduced resolution, and refuse damaged ones.

Pillow ignores libjpeg's warnings and decodes damaged streams silently; simplejpeg reports the warnings. Both
use libjpeg-turbo and give identical pixels.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

HARMLESS = re.compile(r"(\d{1,2}) extraneous bytes before marker 0xd9|Adobe color transform|JFIF revision")
"""Warnings of libjpeg that do not affect pixels, such as padding at the end of the stream by some cameras."""


class DamagedError(Exception):
    """A stream is damaged or incomplete; the message is a short reason for a table."""


def decode(stream: bytes, factor: int = 1) -> npt.NDArray[np.uint8]:
    """Decode a grey or colour JPEG at 1/factor of its resolution, sides rounded up.

    Args:
        stream: the JPEG; bytes after its end are ignored.
        factor: 1, 2, 4 or 8.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DamagedError: pixels are missing or wrong.
    """
    if has_no_end(stream):
        raise DamagedError("truncated JPEG")
    try:
        height, width = simplejpeg.decode_jpeg_header(stream)[:2]
        sides = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
        try:
            return simplejpeg.decode_jpeg(stream, "RGB", **sides)
        except ValueError as warning:
            if not HARMLESS.search(str(warning)):
                raise
        return simplejpeg.decode_jpeg(stream, "RGB", strict=False, **sides)
    except ValueError as warning:
        raise _damaged(warning) from None


def check(stream: bytes) -> None:
    """Check a JPEG of other colours, such as CMYK, by decoding it.

    Raises:
        DamagedError: pixels are missing or wrong.
    """
    if has_no_end(stream):
        raise DamagedError("truncated JPEG")
    try:
        simplejpeg.decode_jpeg(stream, "CMYK")
    except ValueError as warning:
        if not HARMLESS.search(str(warning)):
            raise _damaged(warning) from None


def _damaged(warning: ValueError) -> DamagedError:
    return DamagedError(f"damaged JPEG ({str(warning).removeprefix('Corrupt JPEG data: ')})")


def has_no_end(stream: bytes) -> bool:
    """Whether a stream lacks its end marker.

    The header is skipped, as it may contain a thumbnail with its own end marker; bytes that some cameras
    append after the end are ignored.
    """
    at = 2
    while (
        stream[at : at + 1] == b"\xff" and stream[at + 1 : at + 2] != b"\xda"
    ):  # up to the start of the scan
        filled = stream[at + 1 : at + 2] == b"\xff"
        at += 1 if filled else 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return stream.find(b"\xff\xd9", at) < 0


def is_subsampled(stream: bytes) -> bool:
    """Whether a stream has chroma subsampling, which is never the case for RGB."""
    return simplejpeg.decode_jpeg_header(stream)[3] not in ("444", "Gray")

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
MOST_SCANS = 100
"""Maximum number of scans; encoders write about 10. Each costs the time of a whole image, but few bytes."""
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""A marker; of those without a length, the end marker alone. Compressed pixels contain none."""
END, SCAN = b"\xd9", b"\xda"


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
    check_scans(stream)
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
    check_scans(stream)
    try:
        simplejpeg.decode_jpeg(stream, "CMYK")
    except ValueError as warning:
        if not HARMLESS.search(str(warning)):
            raise _damaged(warning) from None


def _damaged(warning: ValueError) -> DamagedError:
    return DamagedError(f"damaged JPEG ({str(warning).removeprefix('Corrupt JPEG data: ')})")


def check_scans(stream: bytes) -> None:
    """Check that a stream has its end marker, and not too many scans before it.

    Segments are skipped, as they may contain a thumbnail with its own end marker; bytes that some cameras
    append after the end are ignored.

    Raises:
        DamagedError: it is cut off, or would take hours to decode.
    """
    at, scans = 2, 0
    while found := MARKER.search(stream, at):
        if found[1] == END:
            return
        scans += found[1] == SCAN
        if scans > MOST_SCANS:
            raise DamagedError(f"JPEG with more than {MOST_SCANS} scans")
        at = found.end() + int.from_bytes(stream[found.end() : found.end() + 2], "big")
    raise DamagedError("truncated JPEG")


def size(stream: bytes) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        DamagedError: the header is damaged.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(stream)[:2]
    except ValueError as warning:
        raise _damaged(warning) from None
    return width, height


def is_subsampled(stream: bytes) -> bool:
    """Whether a stream has chroma subsampling, which is never the case for RGB."""
    return simplejpeg.decode_jpeg_header(stream)[3] not in ("444", "Gray")

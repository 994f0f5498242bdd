"""Small photographs that ask for gigabytes, for hours, or for another program: refused at once."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tests.hostile.child import one_line, survive
from tests.hostile.photographs import BASELINE_JPEG, DEFLATED, chunk, dicom, eye, saved

from drgrade.images.read import PhotographFile, ReadError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ZEROS = zlib.compress(bytes(1 << 28), 9)
"""A quarter of a gigabyte in as many kilobytes."""


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", ZEROS) + chunk(b"IEND", b"")


def many_scans() -> bytes:
    """A progressive JPEG of 16 million pixels, with its last scan, of 31 bytes, 100,000 times."""
    data = saved(Image.new("RGB", (4000, 4000), (100, 50, 20)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 100_000 + data[-2:]


def many_pages() -> bytes:
    """A TIFF of 50,000 pages, of 64x48 grey pixels; all have the same."""
    tags = ((256, 64), (257, 48), (258, 8), (259, 1), (262, 1), (273, 8), (279, 64 * 48))
    page = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    length = 2 + len(page) + 4
    ends = range(8 + length, 8 + 50_001 * length, length)
    return b"II*\0\x08\0\0\0" + b"".join(
        struct.pack("<H", len(tags)) + page + struct.pack("<I", at) for at in ends
    )


def pages_in_a_ring() -> bytes:
    """A TIFF whose only directory says that it is followed by itself."""
    data = bytearray(saved(Image.fromarray(eye()), "TIFF"))
    start = int.from_bytes(data[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[end : end + 4] = start.to_bytes(4, "little")
    return bytes(data)


def deflated() -> bytes:
    """A DICOM file whose elements are a stream of zeros."""
    whole = dicom(eye(), "RGB", DEFLATED)
    meta = 144 + int.from_bytes(whole[140:144], "little")  # the length of the part that is never compressed
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return whole[:meta] + packer.compress(bytes(1 << 28)) + packer.flush()


def large_jpeg_in_small_dicom() -> bytes:
    large = saved(Image.new("L", (60_000, 2)), "JPEG").replace(
        struct.pack(">HH", 2, 60_000), b"\xea\x60\xea\x60"
    )
    return dicom(eye()[..., 0], "MONOCHROME2", BASELINE_JPEG, large)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "header": (lambda: png(60_000, 60_000), "cannot be decoded"),
    "more pixels than a camera": (lambda: png(9000, 9000), "9000x9000 pixels are no photograph of an eye"),
    "text": (lambda: png(64, 64, chunk(b"zTXt", b"a\0\0" + ZEROS)), "cannot be decoded"),
    "scans": (many_scans, "JPEG with more than 100 scans"),
    "pages": (many_pages, "read"),
    "ring": (pages_in_a_ring, "read"),
    "deflated": (deflated, "DICOM compressed as a whole (deflated)"),
    "jpeg in dicom": (large_jpeg_in_small_dicom, "DICOM with a JPEG of another size, 60000x60000 pixels"),
    "dicom without data": (
        lambda: dicom(np.zeros((2, 2), np.uint8), "MONOCHROME2", Rows=8000, Columns=8000), "truncated DICOM",
    ),
    "program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(x) print\n", "not an image"),
}  # fmt: skip


def bomb(number: int) -> bytes:
    return list(BOMBS.values())[number][0]()


def reason(data: bytes) -> str:
    """Why a file is refused, or that it is read."""
    file = PhotographFile(data)
    try:
        file.size()
    except ReadError as error:
        one_line(str(error))
    try:
        file.reduced(320)
    except ReadError as error:
        one_line(str(error))
        return str(error)
    return "read"


def test_bombs_are_refused_without_time_or_memory(tmp_path: Path) -> None:
    """Each within the limits of :func:`survive`."""
    reasons = sorted(survive(bomb, reason, len(BOMBS), tmp_path).elements())
    expected = sorted(why for _, why in BOMBS.values())
    assert [told[: len(why)] for told, why in zip(reasons, expected, strict=True)] == expected

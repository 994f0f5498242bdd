"""Small valid photographs of all formats and kinds, to be mutated."""

import io
import struct
import zlib
from functools import cache

import cv2
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

SIDE = 64
UNCOMPRESSED, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
BASELINE_JPEG, JPEG_2000, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"


def eye() -> np.ndarray:
    """A reddish disc with some texture, uint8 RGB (48, 64, 3)."""
    rows, columns = np.mgrid[:48, :SIDE]
    lit = np.hypot(columns - 31.5, rows - 23.5) < 23
    texture = np.random.default_rng(0).integers(0, 40, (48, SIDE, 3))
    return (lit[..., None] * (np.array([160, 90, 40]) + texture)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def dicom(pixels: np.ndarray, kind: str, syntax: str = UNCOMPRESSED, data: bytes = b"", **tags) -> bytes:
    """A DICOM file; ``data`` is the compressed frame."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.SOPClassUID, found.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.3"
    found.PatientID, found.PatientName = "17", "Doe^Jane"
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    found.PhotometricInterpretation = kind
    bits = 8 * pixels.itemsize
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = 0
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(found, name, value)
    found.PixelData = encapsulate([data]) if data else pixels.tobytes()
    found["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _rle() -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    rows, columns = eye().shape[:2]
    return RLELosslessEncoder.encode(
        eye(), rows=rows, columns=columns, samples_per_pixel=3, bits_allocated=8, bits_stored=8,
        pixel_representation=0, planar_configuration=0, photometric_interpretation="RGB", number_of_frames=1,
    )  # fmt: skip


def _deep(kind: str) -> bytes:
    return cv2.imencode(kind, eye()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def _big_endian_tiff() -> bytes:
    pixels = eye().astype(">u2")
    tags = [(256, 3, SIDE), (257, 3, 48), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1),
            (278, 3, 48), (279, 4, 48 * SIDE * 2)]  # fmt: skip
    entries = b"".join(
        tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
        for tag, kind, value in tags
    )  # fmt: skip
    head = b"MM\0*" + (8).to_bytes(4, "big") + len(tags).to_bytes(2, "big")
    return head + entries + bytes(4) + pixels[..., 0].tobytes()


def _interlaced() -> bytes:
    """A grey PNG in the seven passes of Adam7, which Pillow reads but does not write."""
    grey = eye()[..., 0]
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in grey[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", SIDE, 48, 8, 0, 0, 0, 1)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@cache
def samples() -> dict[str, list[bytes]]:
    """Valid files by format."""
    image, grey = Image.fromarray(eye()), Image.fromarray(eye()[..., 0])
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a camera"
    thumbnail = image.resize((16, 12))
    deep_grey = Image.fromarray(eye()[..., 0].astype(np.uint16) * 257)
    jpeg = saved(image, "JPEG", quality=85)
    jpeg_2000 = saved(image, "JPEG2000", no_jp2=True)
    tables = {f"{name}PaletteColorLookupTable{part}": value for name in ("Red", "Green", "Blue")
              for part, value in (("Descriptor", [256, 0, 16]), ("Data", bytes(range(256)) * 2))}  # fmt: skip
    return {
        "jpeg": [
            jpeg, saved(image, "JPEG", progressive=True), saved(image.convert("CMYK"), "JPEG"),
            saved(image, "JPEG", exif=turned), saved(grey, "JPEG"),
            saved(image, "JPEG", subsampling=0, restart_marker_blocks=4),
            saved(image, "MPO", save_all=True, append_images=[thumbnail]),
        ],
        "png": [
            saved(image, "PNG"), saved(deep_grey, "PNG"), saved(palette, "PNG"), _deep(".png"),
            saved(image.convert("RGBA"), "PNG"), saved(image.convert("1"), "PNG"),
            saved(image, "PNG", exif=turned, dpi=(72, 72)), saved(palette, "PNG", transparency=3),
            _interlaced(),
        ],
        "tiff": [
            saved(image, "TIFF"), saved(image, "TIFF", compression="tiff_lzw"),
            saved(image, "TIFF", compression="tiff_adobe_deflate", exif=turned),
            saved(image, "TIFF", compression="jpeg"), saved(palette, "TIFF", compression="packbits"),
            saved(image, "TIFF", big_tiff=True), saved(image, "TIFF", strip_size=1000),
            saved(thumbnail, "TIFF", save_all=True, append_images=[image]), saved(deep_grey, "TIFF"),
            saved(image.convert("1"), "TIFF", compression="group4"), _deep(".tif"), _big_endian_tiff(),
            saved(image, "TIFF", tiffinfo={322: 32, 323: 32}, compression="tiff_lzw"),
        ],
        "dicom": [
            dicom(eye(), "RGB"), dicom(eye()[..., 0], "MONOCHROME1"),
            dicom(eye()[..., 0], "PALETTE COLOR", **tables),
            dicom(eye()[..., 0].astype(np.uint16), "MONOCHROME2"), dicom(eye(), "YBR_FULL"),
            dicom(eye(), "YBR_FULL_422", BASELINE_JPEG, jpeg), dicom(eye(), "RGB", RLE, _rle()),
            dicom(eye(), "RGB", JPEG_2000, jpeg_2000), dicom(np.stack([eye()] * 2), "RGB", NumberOfFrames=2),
            dicom(eye()[..., 0].astype(np.int16), "MONOCHROME2", PixelRepresentation=1),
        ],
        "other": [
            saved(image, "BMP"), saved(image, "WEBP"), saved(image, "WEBP", lossless=True),
            saved(grey, "BMP"),
        ],
    }  # fmt: skip

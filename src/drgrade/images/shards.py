"""Write a store of images, atomically and reproducibly: identical bytes for any number of processes.

:mod:`drgrade.images.store` reads it.
"""

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.files import atomic_write, sha256, write_json

Pixels = npt.NDArray[np.uint8]
Format = Literal["raw", "png", "jpeg"]

SHARD_BYTES = 256 * 2**20
"""About the size of a shard: 88,702 crops of 512 px are 260 raw shards, or 27 of JPEG."""
MOST_SHARDS = 512
"""Larger stores have larger shards: an open shard takes a file handle, and a process often gets 1,024."""
SHARE = {"raw": 1.0, "png": 0.5, "jpeg": 0.1}
"""Approximate bytes of a stored image relative to its pixels, used to plan the shards."""


def shard_rows(count: int, size: int, format: Format, shard_bytes: int = SHARD_BYTES) -> list[int]:
    """Number of images of ``size`` pixels in each shard; the same for all but the last."""
    most = max(1, int(shard_bytes / (size * size * 3 * SHARE[format])), math.ceil(count / MOST_SHARDS))
    return [min(most, count - start) for start in range(0, count, most)]


def shard_path(folder: Path, number: int, format: Format) -> Path:
    """Path of a shard's images; offsets of encoded images are in an array file beside it."""
    return folder / f"shard-{number:05d}{'.npy' if format == 'raw' else '.bin'}"


def encode(picture: Pixels, format: Format, quality: int) -> bytes:
    """Encode an image, uint8 RGB (S, S, 3), for a store. JPEG is written without chroma subsampling."""
    if format == "raw":
        return picture.tobytes()
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if format == "jpeg":
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(f".{format}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()


def write_shard(
    folder: Path, number: int, pictures: Iterable[bytes | memoryview], rows: int, size: int, format: Format
) -> None:
    """Write one shard of a store, atomically.

    Uses plain writes, which raise an error on a full disk; writes to mapped memory would kill the process.

    Args:
        folder: folder of the shards.
        number: number of the shard, from 0.
        pictures: its images from :func:`encode`, in order; empty bytes for a missing one, which is black.
        rows: number of images.
        size: side of an image in pixels.
        format: raw, png or jpeg.
    """
    path = shard_path(folder, number, format)
    missing = bytes(3 * size * size) if format == "raw" else b""
    with atomic_write(path) as partial, partial.open("wb") as file:
        if format == "raw":
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
        lengths = [file.write(picture or missing) for picture in pictures]
    if format != "raw":
        with atomic_write(path.with_suffix(".npy")) as partial:
            np.save(partial, np.cumsum([0, *lengths], dtype=np.int64))


def finish_store(
    folder: Path, manifest: Path, rows: Sequence[int], size: int, format: Format, quality: int
) -> None:
    """Make a folder of shards a store, which replaces an earlier one.

    Args:
        folder: holds all shards; it becomes the folder ``store`` beside the manifest.
        manifest: ``store.json``, written last.
        rows: images in each shard, from :func:`shard_rows`.
        size: side of an image in pixels.
        format: raw, png or jpeg.
        quality: JPEG quality, stored in the manifest.
    """
    files = [[shard_path(folder, number, format)] for number in range(len(rows))]
    if format != "raw":
        files = [[pictures, pictures.with_suffix(".npy")] for (pictures,) in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(_describe, rows, files))
    about = {
        "format": format,
        "quality": quality if format == "jpeg" else None,
        "size": size,
        "count": sum(rows),
        "shards": shards,
    }
    store = manifest.with_suffix("")
    manifest.unlink(missing_ok=True)  # it must never describe other shards
    shutil.rmtree(store, ignore_errors=True)
    folder.rename(store)
    write_json(about, manifest)


def write_store(
    pictures: Sequence[Pixels] | Pixels,
    manifest: Path,
    format: Format = "raw",
    quality: int = 95,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write images in memory as a store.

    Args:
        pictures: uint8 RGB (n, S, S, 3), at least one.
        manifest: ``store.json``; the shards go into the folder ``store`` beside it.
        format: raw, png or jpeg.
        quality: JPEG quality, 1-100.
        shard_bytes: approximate size of a shard in bytes.
    """
    size = len(pictures[0])
    rows = shard_rows(len(pictures), size, format, shard_bytes)
    folder = manifest.with_name(f".{manifest.stem}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        first = 0
        for number, count in enumerate(rows):
            blobs = (encode(picture, format, quality) for picture in pictures[first : first + count])
            write_shard(folder, number, blobs, count, size, format)
            first += count
        finish_store(folder, manifest, rows, size, format, quality)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _describe(rows: int, files: Sequence[Path]) -> dict[str, Any]:
    """The entry of a shard in the manifest."""
    described = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in files]
    return {"rows": rows, "files": described}

"""Write a store of images, atomically and reproducibly: identical bytes for any number of processes.

:mod:`drgrade.images.store` reads it.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.errors import UserError
from drgrade.files import sha256, write_json

Pixels = npt.NDArray[np.uint8]
Format = Literal["raw", "png", "jpeg"]

SHARD_BYTES = 256 * 2**20
"""About the size of a shard: 88,702 crops of 512 px are 260 raw shards, or 27 of JPEG."""
SHARE = {"raw": 1.0, "png": 0.5, "jpeg": 0.1}
"""Approximate bytes of a stored image relative to its pixels, used to plan the shards."""


def shard_rows(count: int, size: int, format: Format, shard_bytes: int = SHARD_BYTES) -> list[int]:
    """Number of images of ``size`` pixels in each shard; the same for all but the last."""
    most = max(1, int(shard_bytes / (size * size * 3 * SHARE[format])))
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


class StoreWriter:
    """A store that is being written, created by :func:`writing`.

    Raw images may be written in any order and by any process that knows the path of the shard
    (:func:`write_raw`); encoded ones are added in order.

    Args:
        folder: folder of the shards.
        rows: images in each shard, from :func:`shard_rows`.
        size: side of an image in pixels.
        format: raw, png or jpeg.
        quality: JPEG quality, stored in the manifest.
    """

    def __init__(self, folder: Path, rows: Sequence[int], size: int, format: Format, quality: int) -> None:
        self.folder, self.rows, self.size, self.format, self.quality = folder, rows, size, format, quality
        self._lengths: list[list[int]] = [[] for _ in rows]
        folder.mkdir(parents=True)
        for number, count in enumerate(rows):
            if format == "raw":
                _blank(self.shard(number), (count, size, size, 3))
            else:
                self.shard(number).touch()

    def shard(self, number: int) -> Path:
        """Path of a shard's images."""
        return shard_path(self.folder, number, self.format)

    def add(self, number: int, pictures: Sequence[bytes]) -> None:
        """Append encoded images to a shard; empty bytes mean a missing image."""
        with self.shard(number).open("ab") as file:
            file.writelines(pictures)
        self._lengths[number] += map(len, pictures)

    def finish(self) -> dict[str, Any]:
        """Finish all files and return the manifest."""
        files = [[self.shard(number)] for number in range(len(self.rows))]
        if self.format != "raw":
            for (pictures, *_), lengths in zip(files, self._lengths, strict=True):
                np.save(pictures.with_suffix(".npy"), np.cumsum([0, *lengths], dtype=np.int64))
            files = [[pictures, pictures.with_suffix(".npy")] for (pictures,) in files]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(lambda paths: [sha256(path) for path in paths], files))
        return {
            "format": self.format,
            "quality": self.quality if self.format == "jpeg" else None,
            "size": self.size,
            "count": sum(self.rows),
            "shards": [
                {
                    "rows": rows,
                    "files": [
                        {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
                        for path, digest in zip(paths, found, strict=True)
                    ],
                }
                for rows, paths, found in zip(self.rows, files, digests, strict=True)
            ],
        }


@contextmanager
def writing(
    manifest: Path, rows: Sequence[int], size: int, format: Format, quality: int
) -> Iterator[StoreWriter]:
    """Context manager that writes a store: shards are written to a hidden folder, renamed on success.

    Args:
        manifest: ``store.json``, written last; the shards go to the folder ``store`` beside it.
        rows: see :class:`StoreWriter`, also for the other arguments.

    Raises:
        UserError: the disk is full.
    """
    folder = manifest.with_suffix("")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writer = StoreWriter(partial, rows, size, format, quality)
        yield writer
        about = writer.finish()
        manifest.unlink(missing_ok=True)  # it must never describe other shards
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        write_json(about, manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: the disk is full; free some and run crop again") from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_raw(shard: Path, first: int, pictures: Sequence[bytes]) -> None:
    """Write images to a raw shard, starting at row ``first``; empty bytes leave a row black.

    Uses plain writes, which raise an error on a full disk; writes to mapped memory would kill the process.
    """
    with shard.open("r+b") as file:
        np.lib.format.read_magic(file)
        (_, *picture), _, _ = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        for row, data in enumerate(pictures, first):
            if data:
                file.seek(start + row * int(np.prod(picture)))
                file.write(data)


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
    with writing(manifest, rows, size, format, quality) as writer:
        first = 0
        for shard, count in enumerate(rows):
            blobs = (encode(picture, format, quality) for picture in pictures[first : first + count])
            if format == "raw":
                write_raw(writer.shard(shard), 0, list(blobs))
            else:
                writer.add(shard, list(blobs))
            first += count


def _blank(path: Path, shape: tuple[int, ...]) -> None:
    """Create an array file of zeros and allocate its disk space, so that a full disk is noticed now."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + int(np.prod(shape)))

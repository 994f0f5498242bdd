"""Crops on disk with random access, in a few large files instead of one per photograph.

A store is a manifest, ``store.json``, and beside it a folder of the manifest's name, ``store/``, with shards:
raw pixels as memory-mapped arrays, or concatenated PNG or JPEG images with their offsets.
"""

import bisect
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade import schema
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.images.geometry import CropGeometry, boxes_to_crops
from drgrade.images.mapping import Shard

Pixels = npt.NDArray[np.uint8]


class Images(Protocol):
    """Anything indexed like an array of images, uint8 RGB (n, S, S, 3): a store, a scaled copy, an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, S, S, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class CropStore:
    """Square images on disk, read-only: ``store[row]``, ``store[rows]`` and ``store[3:7]`` read only those.

    Can be shared by threads and by forked or spawned processes: files are opened on first access, and no
    resources are kept that a fork would break.

    Args:
        manifest: ``store.json``; its shards are in the folder ``store`` beside it.

    Attributes:
        size: side of an image in pixels.
        format: raw, png or jpeg.
        shape: (n, size, size, 3).
        scaled: copies at other sizes, filled by :func:`drgrade.images.scaled.at_size`.

    Raises:
        UserError: the manifest or a shard is missing, or the length of a shard is wrong.

    Example:
        >>> store = CropStore(Path("results/demo/crop/store.json"))
        >>> store[[4, 2, 4]].shape
        (3, 256, 256, 3)
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        self.folder = manifest.with_suffix("")
        try:
            about = json.loads(manifest.read_text())
            self.size, self.format = int(about["size"]), str(about["format"])
            counts = [int(shard["rows"]) for shard in about["shards"]]
            self._files = [
                {file["name"]: (int(file["bytes"]), str(file["sha256"])) for file in shard["files"]}
                for shard in about["shards"]
            ]
        except FileNotFoundError:
            raise UserError(f"{manifest}: no such file; run the stage crop first") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest}: not a readable manifest of a store ({error}); {self._remedy}"
            ) from None
        self.shape = (sum(counts), self.size, self.size, 3)
        self._starts = [0, *itertools.accumulate(counts)]
        self._open: dict[int, Shard] = {}
        self.scaled: dict[int, Images] = {}
        self._numbers = np.arange(len(self))
        self._check_lengths()

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[type["CropStore"], tuple[Path]]:
        return CropStore, (self.manifest,)

    def __getitem__(self, rows: Any) -> Pixels:
        """Return an image (size, size, 3), or for a slice or array of rows (k, size, size, 3).

        Rows are indexed as in NumPy. A single raw image is not copied: pages are read when accessed. Several
        PNG or JPEG images are decoded on all CPU cores.
        """
        chosen = self._numbers[rows]
        if chosen.ndim == 0:
            self._prefetch(int(chosen), 0, self.size)
            return self.picture(int(chosen))
        pictures = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        self.prefetch(chosen, np.zeros(len(chosen), np.int64), self.size)

        def read(place: int) -> None:
            pictures[place] = self.picture(int(chosen[place]))

        _each(read, range(len(chosen)), threads=self.format != "raw")
        return pictures

    def prefetch(self, rows: npt.NDArray[Any], tops: npt.NDArray[Any], lines: int) -> None:
        """Prefetch from disk ``lines`` lines of each image, starting at line ``tops``, in the background."""
        for row, top in zip(rows, tops, strict=True):
            self._prefetch(int(row), int(top), min(lines, self.size - int(top)))

    def picture(self, row: int) -> Pixels:
        """Return an image (size, size, 3); a raw one is not copied, and its pages are read when accessed.

        Raises:
            UserError: the image cannot be decoded.
        """
        shard, place = self._find(row)
        start, end = shard.offsets[place : place + 2]
        data = shard.bytes[start:end]
        if self.format == "raw":
            return data.reshape(self.shape[1:])
        if not len(data):  # a photograph that could not be cropped
            return np.zeros(self.shape[1:], np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        if picture is None or picture.shape != self.shape[1:]:
            raise UserError(f"{self.folder}: row {row} cannot be decoded; {self._remedy}")
        return picture.astype(np.uint8, copy=False)

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            UserError: a shard has changed since it was written; names the shard.
        """
        files = [(self.folder / name, digest) for shard in self._files for name, (_, digest) in shard.items()]
        with ThreadPoolExecutor(_cores()) as pool:
            found = pool.map(lambda file: sha256(file[0]), files)
            for (path, digest), actual in zip(files, found, strict=True):
                if actual != digest:
                    raise UserError(f"{path}: damaged, its SHA-256 is not the manifest's; {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"restore it with dvc checkout, or delete {self.folder} and run the stage crop again"

    def _check_lengths(self) -> None:
        for name, (expected, _) in itertools.chain.from_iterable(shard.items() for shard in self._files):
            try:
                length = (self.folder / name).stat().st_size
            except OSError:
                raise UserError(f"{self.folder / name}: no such file; {self._remedy}") from None
            if length != expected:
                raise UserError(f"{self.folder / name}: {length} bytes, not {expected}; {self._remedy}")

    def _shard(self, number: int) -> Shard:
        """Return a shard, opened on first access; two threads may both open it."""
        if number not in self._open:
            rows = self._starts[number + 1] - self._starts[number]
            paths = [self.folder / name for name in self._files[number]]
            try:
                self._open[number] = Shard(paths, (rows, *self.shape[1:]), self.format == "raw")
            except (OSError, ValueError) as error:
                raise UserError(f"{paths[0]}: not a readable shard ({error}); {self._remedy}") from None
        return self._open[number]

    def _find(self, row: int) -> tuple[Shard, int]:
        """Return the shard of a row, and the row's position in it."""
        number = bisect.bisect_right(self._starts, row) - 1
        return self._shard(number), row - self._starts[number]

    def _prefetch(self, row: int, line: int, lines: int) -> None:
        """Prefetch an image from disk, of a raw one only some lines, in the background."""
        shard, place = self._find(row)
        start, end = (int(edge) for edge in shard.offsets[place : place + 2])
        if self.format == "raw":
            stride = 3 * self.size
            start, end = start + line * stride, start + (line + lines) * stride
        if start < end:
            page = start - start % mmap.PAGESIZE
            shard.mapped.madvise(mmap.MADV_WILLNEED, page, end - page)


class Crops:
    """The crops of a dataset by image id.

    Args:
        store: ``store.json``.
        table: ``crops.parquet``.

    Attributes:
        pictures: the store, uint8 RGB (n, size, size, 3).
        size: side of a crop in pixels.
        rows: row of ``pictures`` by image_id, in the table's order; without photographs that have no crop.

    Raises:
        UserError: a file is missing or damaged, or the two files do not belong together.

    """

    def __init__(self, store: Path, table: Path) -> None:
        self.pictures = CropStore(store)
        self.size = self.pictures.size
        cropped = schema.read_table(table, schema.CROPS).query("status == 'ok'")
        self.rows = dict(zip(cropped["image_id"], cropped["row"].astype(int), strict=True))
        last = max(self.rows.values(), default=-1)
        if last >= len(self.pictures):
            raise UserError(
                f"{table}: names row {last}, but {store} has {len(self.pictures)}; make both again"
            )
        self._boxes = cropped.set_index("image_id")[["x0", "y0", "x1", "y1"]]

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.rows)

    def __contains__(self, image_id: object) -> bool:
        """Whether the photograph has a crop."""
        return image_id in self.rows

    def __getitem__(self, image_id: str) -> Pixels:
        """The crop of a photograph, uint8 RGB (size, size, 3).

        Raises:
            KeyError: it has no crop.

        """
        return self.pictures[self.rows[image_id]]

    def geometry(self, image_id: str) -> CropGeometry:
        """Return the geometry of a crop in its photograph.

        Raises:
            KeyError: it has no crop.

        """
        return CropGeometry.from_row(self._boxes.loc[image_id], self.size)

    def boxes_to_crops(self, image_ids: pd.Series, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Transform boxes of many photographs, each from original pixels to those of its own crop.

        Args:
            image_ids: photograph of each box (n,).
            boxes: (n, 4), (x1, y1, x2, y2).

        Raises:
            KeyError: a photograph has no crop.

        """
        return boxes_to_crops(boxes, self._boxes.loc[image_ids].to_numpy(np.float64), self.size)


def _each(work: Callable[[int], None], items: Iterable[int], threads: bool) -> None:
    """Run ``work`` on all items, optionally in threads, which end with the call: a kept pool breaks forks."""
    if not threads or _cores() == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(_cores()) as pool:
        for _ in pool.map(work, items):
            pass


def _cores() -> int:
    return len(os.sched_getaffinity(0))

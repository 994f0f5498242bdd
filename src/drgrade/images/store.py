"""Crops on disk: a few large files instead of one a photograph, any crop read without the others.

A store is a manifest, ``store.json``, and beside it a folder of the manifest's name, ``store/``, with shards:
raw pixels as memory-mapped arrays, or PNG or JPEG pictures one behind the other with their offsets.
"""

import bisect
import itertools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from drgrade import schema
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.images.geometry import CropGeometry

Pixels = npt.NDArray[np.uint8]

IN_MEMORY = 2 * 10**9
"""Bytes up to which scaled pictures are held in memory; more go to an unnamed file."""
SCALED = Path(".cache/drgrade/scaled")
"""Where that file takes its space: on the disk of the results, as /tmp may itself be memory."""


class Pictures(Protocol):
    """Anything that is read like an array of pictures, uint8 RGB (n, S, S, 3): a store, a copy, an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class CropStore:
    """Square pictures on disk, read-only: ``store[row]``, ``store[rows]`` and ``store[3:7]`` read only those.

    May be shared by threads, and by processes whether forked or spawned: files are opened when first read,
    and nothing is held that a fork would break.

    Args:
        manifest: ``store.json``; its shards are in the folder ``store`` beside it.

    Attributes:
        size: side of a picture in pixels.
        format: raw, png or jpeg.
        shape: (n, size, size, 3).

    Raises:
        UserError: the manifest or a shard is missing, or a shard is not as long as it was.

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
        self._open: dict[int, tuple[Pixels, npt.NDArray[np.int64] | None]] = {}
        self._scaled: dict[int, Scaled] = {}
        self._numbers = np.arange(len(self))
        self._check_lengths()

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[type["CropStore"], tuple[Path]]:
        return CropStore, (self.manifest,)

    def __getitem__(self, rows: Any) -> Pixels:
        """A picture (size, size, 3), or with a slice or array of rows (k, size, size, 3).

        Rows are meant as in NumPy. One raw picture is not copied: only the part that is looked at is read.
        """
        chosen = self._numbers[rows]
        if chosen.ndim == 0:
            return self._picture(int(chosen))
        return windows(self, chosen, np.zeros((len(chosen), 2), np.int64), self.size)

    def verify(self) -> None:
        """Read every shard again and compare it with its checksum.

        Raises:
            UserError: a shard has changed since it was written; it is named.
        """
        files = [(self.folder / name, digest) for shard in self._files for name, (_, digest) in shard.items()]
        with ThreadPoolExecutor(_cores()) as pool:
            found = pool.map(lambda file: sha256(file[0]), files)
            for (path, digest), actual in zip(files, found, strict=True):
                if actual != digest:
                    raise UserError(f"{path}: damaged, its SHA-256 is not the manifest's; {self._remedy}")

    def at(self, size: int) -> "Scaled":
        """These pictures at another size, one copy for all who ask."""
        if size not in self._scaled:
            self._scaled[size] = Scaled(self, size)
        return self._scaled[size]

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

    def _shard(self, number: int) -> tuple[Pixels, npt.NDArray[np.int64] | None]:
        """The mapped bytes of a shard, and where its pictures start; two threads may both open it."""
        if number not in self._open:
            first, *rest = (self.folder / name for name in self._files[number])
            rows = self._starts[number + 1] - self._starts[number]
            try:
                if self.format == "raw":
                    data, offsets = np.load(first, mmap_mode="r"), None
                else:
                    offsets = np.load(rest[0])
                    # a shard of photographs that all failed is an empty file, which cannot be mapped
                    data = np.memmap(first, np.uint8, "r") if offsets[-1] else np.empty(0, np.uint8)
            except (OSError, ValueError) as error:
                raise UserError(f"{first}: not a readable shard ({error}); {self._remedy}") from None
            if (data.shape[1:] != self.shape[1:]) if offsets is None else len(offsets) != rows + 1:
                raise UserError(f"{first}: holds other pictures than {self.manifest} says; {self._remedy}")
            self._open[number] = data, offsets
        return self._open[number]

    def _picture(self, row: int) -> Pixels:
        number = bisect.bisect_right(self._starts, row) - 1
        data, offsets = self._shard(number)
        place = row - self._starts[number]
        if offsets is None:
            return data[place]
        start, end = offsets[place : place + 2]
        if start == end:  # a photograph that could not be cropped
            return np.zeros((self.size, self.size, 3), np.uint8)
        picture = cv2.imdecode(np.asarray(data[start:end]), cv2.IMREAD_COLOR_RGB)
        if picture is None or picture.shape != self.shape[1:]:
            raise UserError(f"{self.folder}: row {row} cannot be decoded; {self._remedy}")
        return picture.astype(np.uint8, copy=False)


class Scaled:
    """Pictures at another size, each scaled once, when it is first asked for.

    Args:
        images: any :class:`Pictures`.
        size: side wanted.
    """

    def __init__(self, images: Pictures, size: int) -> None:
        self.shape = (len(images), size, size, 3)
        self._images = images
        self._pixels = _blank(self.shape)
        self._ready = np.zeros(len(images), bool)
        self._numbers = np.arange(len(images))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Pixels:
        """A picture or pictures, rows as in NumPy."""
        chosen = self._numbers[rows]
        with self._lock:
            lacking = np.unique(chosen[~self._ready[chosen]])
            for start in range(0, len(lacking), 64):
                part = lacking[start : start + 64]
                self._pixels[part] = scale(self._images[part], self.shape[1])
                self._ready[part] = True
        return self._pixels[chosen]


class Crops:
    """The crops of a dataset, by image.

    Args:
        store: ``store.json``.
        table: ``crops.parquet``.

    Attributes:
        pictures: the store, uint8 RGB (n, size, size, 3).
        size: side of a crop in pixels.
        rows: image_id to row of ``pictures``, in the table's order; photographs without a crop are not in it.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.

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
        """Whether the photograph could be cropped."""
        return image_id in self.rows

    def __getitem__(self, image_id: str) -> Pixels:
        """The crop of a photograph, uint8 RGB (size, size, 3).

        Raises:
            KeyError: it has no crop.

        """
        return self.pictures[self.rows[image_id]]

    def geometry(self, image_id: str) -> CropGeometry:
        """Where the crop lies in its photograph.

        Raises:
            KeyError: it has no crop.

        """
        return CropGeometry.from_row(self._boxes.loc[image_id], self.size)


def windows(images: Pictures, rows: npt.NDArray[Any], corners: npt.NDArray[Any], side: int) -> Pixels:
    """A square window of each picture, decoded on all cores where the store is PNG or JPEG.

    Args:
        images: pictures (n, S, S, 3).
        rows: which of them, integers (k,).
        corners: left and top edge of each window in pixels, integers (k, 2).
        side: of the windows, at most S.

    Returns:
        uint8 (k, side, side, 3).
    """
    cuts = np.empty((len(rows), side, side, 3), np.uint8)

    def cut(place: int) -> None:
        x, y = corners[place]
        cuts[place] = images[int(rows[place])][y : y + side, x : x + side]

    _each(cut, range(len(rows)), isinstance(images, CropStore) and images.format != "raw")
    return cuts


def at_size(images: Pictures, size: int) -> Pictures:
    """``images`` where they have this size, else a scaled copy; all who ask a store for a size share one."""
    if images.shape[1] == size:
        return images
    return images.at(size) if isinstance(images, CropStore) else Scaled(images, size)


def scale(pictures: Pixels, size: int) -> Pixels:
    """Pictures (n, S, S, 3) at another size: shrunk by area averaging, enlarged by cubic interpolation."""
    how = cv2.INTER_AREA if size < pictures.shape[1] else cv2.INTER_CUBIC
    scaled = np.empty((len(pictures), size, size, 3), np.uint8)
    for place, picture in enumerate(pictures):
        scaled[place] = cv2.resize(picture, (size, size), interpolation=how)
    return scaled


def _blank(shape: tuple[int, ...]) -> Pixels:
    """Memory that is taken up as it is written to, or a file that is gone when the process ends."""
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    SCALED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=SCALED) as file:  # the mapping keeps it alive
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _each(work: Callable[[int], None], items: Iterable[int], threads: bool) -> None:
    """Do all, in threads where that pays. They end with the call: a pool that is kept would break a fork."""
    if not threads or _cores() == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(_cores()) as pool:
        for _ in pool.map(work, items):
            pass


def _cores() -> int:
    return len(os.sched_getaffinity(0))

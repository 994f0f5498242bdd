"""Images scaled to a network's input size, once for all its trainings."""

import tempfile
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drgrade.faults import allocate, naming
from drgrade.images.store import CropStore, Images, Pixels

IN_MEMORY = 2 * 10**9
"""Maximum size in bytes of scaled images held in memory; larger ones are kept in an unnamed file."""
SCALED = Path(".cache/drgrade/scaled")
"""Folder of that file: on the disk of the results, as /tmp may be in memory."""


def at_size(images: Images, size: int) -> Images:
    """Return ``images`` if they have this size, else a scaled copy, which is shared per store and size."""
    if images.shape[1] == size:
        return images
    if not isinstance(images, CropStore):
        return Scaled(images, size)
    if size not in images.scaled:
        images.scaled[size] = Scaled(images, size)
    return images.scaled[size]


class Scaled:
    """Images at another size, each scaled once, on first access.

    Args:
        images: any :class:`Images`.
        size: side of the scaled images in pixels.
    """

    def __init__(self, images: Images, size: int) -> None:
        self.shape = (len(images), size, size, 3)
        self._images = images
        self._pixels = _blank(self.shape)
        self._ready = np.zeros(len(images), bool)
        self._numbers = np.arange(len(images))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Pixels:
        """Return one or several images, indexed as in NumPy."""
        chosen = self._numbers[rows]
        with self._lock:
            lacking = np.unique(chosen[~self._ready[chosen]])
            for start in range(0, len(lacking), 64):
                part = lacking[start : start + 64]
                self._pixels[part] = scale(self._images[part], self.shape[1])
                self._ready[part] = True
        return self._pixels[chosen]


def scale(pictures: Pixels, size: int) -> Pixels:
    """Scale images (n, S, S, 3): shrink by area averaging, enlarge by cubic interpolation."""
    how = cv2.INTER_AREA if size < pictures.shape[1] else cv2.INTER_CUBIC
    scaled = np.empty((len(pictures), size, size, 3), np.uint8)
    for place, picture in enumerate(pictures):
        scaled[place] = cv2.resize(picture, (size, size), interpolation=how)
    return scaled


def _blank(shape: tuple[int, ...]) -> Pixels:
    """Allocate memory, or a file on disk that is deleted when the process ends.

    Raises:
        OSError: the disk is too full for all images.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    with naming(SCALED):
        SCALED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=SCALED) as file:  # the mapping keeps it alive
            allocate(file, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)

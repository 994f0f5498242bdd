"""Images at the size a network wants, scaled once for all its trainings."""

import tempfile
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drgrade.images.store import CropStore, Pictures, Pixels

IN_MEMORY = 2 * 10**9
"""Bytes up to which scaled images are held in memory; more go to an unnamed file."""
SCALED = Path(".cache/drgrade/scaled")
"""Where that file takes its space: on the disk of the results, as /tmp may itself be memory."""


def at_size(images: Pictures, size: int) -> Pictures:
    """``images`` where they have this size, else a scaled copy; all who ask a store for a size share one."""
    if images.shape[1] == size:
        return images
    if not isinstance(images, CropStore):
        return Scaled(images, size)
    if size not in images.scaled:
        images.scaled[size] = Scaled(images, size)
    return images.scaled[size]


class Scaled:
    """Images at another size, each scaled once, when it is first asked for.

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
        """An image or images, rows as in NumPy."""
        chosen = self._numbers[rows]
        with self._lock:
            lacking = np.unique(chosen[~self._ready[chosen]])
            for start in range(0, len(lacking), 64):
                part = lacking[start : start + 64]
                self._pixels[part] = scale(self._images[part], self.shape[1])
                self._ready[part] = True
        return self._pixels[chosen]


def scale(pictures: Pixels, size: int) -> Pixels:
    """Images (n, S, S, 3) at another size: shrunk by area averaging, enlarged by cubic interpolation."""
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

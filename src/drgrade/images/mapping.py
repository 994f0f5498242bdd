"""One file of a store as memory: reading an image is looking at its bytes."""

import math
import mmap
from pathlib import Path

import numpy as np


class Shard:
    """A finished shard, mapped into memory.

    Args:
        paths: its file, and that of its offsets unless it is raw.
        shape: (rows, S, S, 3).
        raw: whether it holds plain pixels.

    Attributes:
        bytes: of the file, uint8, read-only.
        offsets: where in them each image starts and the last one ends, int64 (rows + 1).
        mapped: the mapping; it is not there when all the images are missing.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """

    def __init__(self, paths: list[Path], shape: tuple[int, ...], raw: bool) -> None:
        rows, picture = shape[0], math.prod(shape[1:])
        with paths[0].open("rb") as file:
            first = 0
            if raw:
                np.lib.format.read_magic(file)
                held = np.lib.format.read_array_header_1_0(file)
                if held != (shape, False, np.dtype(np.uint8)):
                    raise ValueError(f"it holds {held[2]} {held[0]}")
                first = file.tell()
            self.offsets = first + picture * np.arange(rows + 1) if raw else np.load(paths[1])
            if self.offsets.shape != (rows + 1,):
                raise ValueError(f"{len(self.offsets) - 1} offsets of {rows} pictures")
            if not self.offsets[-1]:  # photographs that all failed: an empty file, which cannot be mapped
                self.bytes = np.empty(0, np.uint8)
                return
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # reading ahead fetches neighbours that a random batch has no use for
        self.mapped.madvise(mmap.MADV_RANDOM)
        self.bytes = np.frombuffer(self.mapped, np.uint8)

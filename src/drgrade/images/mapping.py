"""Memory mapping of one shard of an image store."""

import math
import mmap
from pathlib import Path

import numpy as np


class Shard:
    """A finished shard, mapped into memory.

    Args:
        paths: the shard's file and, unless it is raw, the file of offsets.
        shape: (rows, S, S, 3).
        raw: whether the shard holds raw pixels.

    Attributes:
        bytes: content of the file, uint8, read-only.
        offsets: start of each image in ``bytes`` and end of the last one, int64 (rows + 1).
        mapped: the memory mapping; not set if all images are missing.

    Raises:
        ValueError: the content does not match ``shape``.
        OSError: a file cannot be read.
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
                raise ValueError(f"{len(self.offsets) - 1} offsets of {rows} images")
            if not self.offsets[-1]:  # all photographs failed: an empty file cannot be mapped
                self.bytes = np.empty(0, np.uint8)
                return
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # no read-ahead: random batches do not use neighbouring images
        self.mapped.madvise(mmap.MADV_RANDOM)
        self.bytes = np.frombuffer(self.mapped, np.uint8)

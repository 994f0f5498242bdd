"""Crops on disk, mapped into memory: any crop is read without the others."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from drgrade import schema
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry


def open_store(path: Path) -> npt.NDArray[np.uint8]:
    """A square picture store, read-only and memory-mapped: uint8 RGB (n, size, size, 3).

    Raises:
        UserError: the file is missing, cut short, or holds something else.
    """
    try:
        pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable picture store ({error}); make it again") from None
    shape = pictures.shape
    if pictures.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise UserError(
            f"{path}: holds {pictures.dtype} {shape}, not uint8 (n, size, size, 3); make it again"
        )
    return pictures


class Crops:
    """The crops of a dataset, by image.

    Args:
        store: ``crops.npy``.
        table: ``crops.parquet``.

    Attributes:
        pictures: uint8 RGB (n, size, size, 3), memory-mapped, read-only.
        size: side of a crop in pixels.
        rows: image_id to row of ``pictures``, in the table's order; photographs without a crop are not in it.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.

    """

    def __init__(self, store: Path, table: Path) -> None:
        self.pictures = open_store(store)
        self.size = int(self.pictures.shape[1])
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

    def __getitem__(self, image_id: str) -> npt.NDArray[np.uint8]:
        """The crop of a photograph, uint8 RGB (size, size, 3), read-only.

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

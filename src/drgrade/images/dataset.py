"""A dataset after the stages index and crop: its table and its crops."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from drgrade.images.store import Crops, CropStore
from drgrade.schema import CROPS, INDEX, read_table


@dataclass(frozen=True)
class CroppedDataset:
    """What the stages index and crop left in ``results/<name>``.

    Args:
        name: of the dataset.
        folder: ``results/<name>``.

    Raises:
        UserError: when a file that is asked for is missing or damaged.
    """

    name: str
    folder: Path

    @property
    def index_file(self) -> Path:
        """``index.parquet``."""
        return self.folder / "index/index.parquet"

    @property
    def crops_file(self) -> Path:
        """``crops.parquet``."""
        return self.folder / "crop/crops.parquet"

    @property
    def store_file(self) -> Path:
        """``store.json``, its shards beside it."""
        return self.folder / "crop/store.json"

    @property
    def masks_folder(self) -> Path:
        """What the stage lesion_masks wrote, if it ran."""
        return self.folder / "lesion_masks"

    @cached_property
    def index(self) -> pd.DataFrame:
        """The index, with the columns of ``drgrade.schema.INDEX``."""
        return read_table(self.index_file, INDEX)

    @cached_property
    def crops(self) -> Crops:
        """The crops, by image."""
        return Crops(self.store_file, self.crops_file)

    @property
    def images(self) -> CropStore:
        """The crops as one array of images, uint8 RGB (N, S, S, 3)."""
        return self.crops.pictures

    def graded(self) -> pd.DataFrame:
        """Rows of the index that have a grade and a crop, with their ``row`` in the store."""
        table = self.index
        table = table[(table["subset"] == "grading") & (table["status"] == "ok") & table["grade"].notna()]
        cut = read_table(self.crops_file, CROPS)
        cut = cut[cut["status"] == "ok"]
        return table.merge(cut[["image_id", "row"]], on="image_id", validate="one_to_one")

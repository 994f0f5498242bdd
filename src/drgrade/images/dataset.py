"""A dataset after the stages index and crop: its index and its crops."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from drgrade.images.store import Crops, CropStore
from drgrade.schema import CROPS, INDEX, read_table


@dataclass(frozen=True)
class CroppedDataset:
    """Results of the stages index and crop in ``results/<name>``; files are read on first access.

    Args:
        name: name of the dataset.
        folder: ``results/<name>``.

    Raises:
        UserError: on access, if a file is missing or damaged.
    """

    name: str
    folder: Path

    @property
    def index_file(self) -> Path:
        """Path of ``index.parquet``."""
        return self.folder / "index/index.parquet"

    @property
    def crops_file(self) -> Path:
        """Path of ``crops.parquet``."""
        return self.folder / "crop/crops.parquet"

    @property
    def store_file(self) -> Path:
        """Path of ``store.json``; its shards are in the folder beside it."""
        return self.folder / "crop/store.json"

    @property
    def masks_folder(self) -> Path:
        """Output folder of the stage lesion_masks; may not exist."""
        return self.folder / "lesion_masks"

    @cached_property
    def index(self) -> pd.DataFrame:
        """The index, with the columns of ``drgrade.schema.INDEX``."""
        return read_table(self.index_file, INDEX)

    @cached_property
    def crops(self) -> Crops:
        """The crops by image id."""
        return Crops(self.store_file, self.crops_file)

    @property
    def images(self) -> CropStore:
        """The crops as one array of images, uint8 RGB (N, S, S, 3)."""
        return self.crops.pictures

    def graded(self) -> pd.DataFrame:
        """Rows of the index with a grade and a crop, and the column ``row``: their row in the store."""
        table = self.index
        table = table[(table["subset"] == "grading") & (table["status"] == "ok") & table["grade"].notna()]
        cut = read_table(self.crops_file, CROPS)
        cut = cut[cut["status"] == "ok"]
        return table.merge(cut[["image_id", "row"]], on="image_id", validate="one_to_one")

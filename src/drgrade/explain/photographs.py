"""The photographs of the stage ``explain``: which ones are shown, and reading them."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.explain.score import Mask, filled
from drgrade.images.dataset import CroppedDataset
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import read_photograph
from drgrade.images.rules import RGBImage
from drgrade.lesions.masks import read_mask

DARK = 20
"""Largest brightness (0-255, of the brightest channel) of pixels outside the field of view."""


@dataclass(frozen=True)
class Photograph:
    """A photograph to explain.

    Attributes:
        dataset: name of its dataset.
        image_id: its name there.
        image: uint8 RGB (H, W, 3).
        geometry: position of its crop.
        lesion: (H, W), true on annotated lesions of any kind; None if it has no masks.
    """

    dataset: str
    image_id: str
    image: RGBImage
    geometry: CropGeometry
    lesion: Mask | None = None

    @cached_property
    def field(self) -> Mask:
        """The field of view (H, W), without holes."""
        return filled(self.image.max(axis=2) > DARK)


def read(source: CroppedDataset, row: pd.Series) -> Photograph:
    """Read the photograph of a row of a dataset's index, and its lesion masks if it is there for them."""
    image_id, root = str(row["image_id"]), raw_root(source.name)
    image = read_photograph(root / str(row["path"]))
    lesion: Mask | None = None
    if row["subset"] == "segmentation" and (masks := DATASETS.get(source.name)().masks(root, image_id)):
        lesion = np.any([read_mask(path) for path in masks.values()], axis=0)
    return Photograph(source.name, image_id, image, source.crops.geometry(image_id), lesion)


def with_masks(source: CroppedDataset, among: Collection[str], images: int) -> pd.DataFrame:
    """Return up to ``images`` photographs with lesion masks: test first, then validation, then training.

    Args:
        source: the dataset.
        among: image ids that can be explained.
        images: maximum number.
    """
    table = _usable(source, "segmentation", among)
    first = table["split"].map({"test": 0, "val": 1, "train": 2})
    return table.assign(first=first).sort_values(["first", "image_id"]).head(images)


def test_rows(source: CroppedDataset, among: Collection[str], images: int) -> pd.DataFrame:
    """Return up to ``images`` graded test photographs (with folds: of fold 0), alternating over the grades.

    Higher grades come first. Arguments are those of :func:`with_masks`.
    """
    table = _usable(source, "grading", among)
    table = table[table["fold"].eq(0).fillna(False) | (table["split"] == "test")].sort_values("image_id")
    turn = table.groupby("grade").cumcount()
    return table.assign(turn=turn).sort_values(["turn", "grade"], ascending=[True, False]).head(images)


def _usable(source: CroppedDataset, subset: str, among: Collection[str]) -> pd.DataFrame:
    table = source.index[(source.index["subset"] == subset) & (source.index["status"] == "ok")]
    return table[table["image_id"].isin(list(among)) & table["image_id"].isin(list(source.crops.rows))]

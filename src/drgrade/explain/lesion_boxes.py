"""Boxes of the lesion detector as a heat map: the best score among the boxes that cover a pixel."""

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Heat, LesionResults
from drgrade.explain.photographs import Photograph
from drgrade.images.dataset import CroppedDataset
from drgrade.schema import LESION_BOXES, read_table

SEARCHED = {"image_id": "string", "status": "string"}
"""Columns of ``searched.parquet`` that are read."""


@EXPLAINERS.register("lesion_boxes")
class LesionBoxes:
    """The detector's scores, 0-1, on one scale for all photographs; 0 where it found nothing.

    Args:
        results: ``boxes`` is read.

    Raises:
        UserError: a table is missing or damaged.
    """

    def __init__(self, results: LesionResults) -> None:
        if not results.boxes:
            raise UserError("--boxes: needed by the method lesion_boxes; give a dataset and its folder")
        self.masked = results.masked.name
        self.boxes = {
            name: read_table(folder / "lesions.parquet", LESION_BOXES)
            for name, folder in results.boxes.items()
        }
        self.searched = {
            name: read_table(folder / "searched.parquet", SEARCHED) for name, folder in results.boxes.items()
        }

    def explains(self, source: CroppedDataset) -> set[str]:
        """Return image ids of the photographs that were searched, without those that the detector was
        trained on.
        """
        if source.name not in self.searched:
            return set()
        searched, index = self.searched[source.name], source.index
        found = set(searched.loc[searched["status"] == "ok", "image_id"])
        if source.name != self.masked:
            return found
        return found - set(index.loc[trained_on(index), "image_id"])

    def heat(self, photograph: Photograph) -> Heat:
        """Return the best score (H, W) of the boxes that touch each pixel of a photograph."""
        heat = np.zeros(photograph.image.shape[:2], np.float32)
        boxes = self.boxes[photograph.dataset]
        # a later box replaces an earlier one, so the best comes last
        own = boxes[boxes["image_id"] == photograph.image_id].sort_values("score")
        low = np.floor(own[["x1", "y1"]].to_numpy(np.float64)).clip(0).astype(int)
        high = np.ceil(own[["x2", "y2"]].to_numpy(np.float64)).clip(0).astype(int)
        for (x1, y1), (x2, y2), score in zip(low, high, own["score"], strict=True):
            heat[y1:y2, x1:x2] = score
        return heat


def trained_on(index: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of the index rows whose lesion masks the detector is trained on."""
    return ((index["subset"] == "segmentation") & (index["split"] == "train")).fillna(False).astype(bool)

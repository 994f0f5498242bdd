"""What a search finds on a photograph, and the table that the stage ``lesions`` collects."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drgrade.schema import LESION_BOXES, LESIONS

PARTS = LESION_BOXES | {"reason": "string"}
"""Columns of a part: lesions, and for each unreadable photograph a row with a reason and no box."""


@dataclass(frozen=True)
class Found:
    """Lesions on a tile or photograph: boxes (n, 4), scores (n,), labels (n,) that index ``LESIONS``."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> "Found":
        return Found(self.boxes[keep], self.scores[keep], self.labels[keep])


NOTHING = Found(np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int64))


def found_table(image_id: str, found: Found) -> pd.DataFrame:
    """The rows of a part for one photograph."""
    table = pd.DataFrame(found.boxes, columns=["x1", "y1", "x2", "y2"])
    lesions = [LESIONS[label] for label in found.labels]
    return table.assign(image_id=image_id, score=found.scores, lesion=lesions, reason=None)


def unread_table(reasons: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a part for unreadable photographs, given the reason by image_id."""
    return pd.DataFrame({"image_id": reasons.keys(), "reason": reasons.values()})

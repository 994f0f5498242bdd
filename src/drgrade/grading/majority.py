"""The baseline that every grader must beat: the most common training grade, whatever the photograph."""

import json
from pathlib import Path
from typing import Self

import numpy as np

from drgrade.files import write_json
from drgrade.grading.base import GRADERS, Grader, Training
from drgrade.images.store import Pictures
from drgrade.schema import GRADES


@GRADERS.register("majority")
class Majority(Grader):
    """Predicts one grade with certainty."""

    grade: int = 0

    def fit(self, training: Training) -> None:
        """Count the training grades; the lower one wins a tie."""
        self.grade = int(np.bincount(training.train.grades, minlength=len(GRADES)).argmax())

    def predict(self, images: Pictures, rows: np.ndarray) -> np.ndarray:
        """One-hot (n, 5)."""
        return np.tile(np.eye(len(GRADES))[self.grade], (len(rows), 1))

    def save(self, folder: Path) -> None:
        """Write the grade."""
        write_json({"grader": "majority", "grade": self.grade}, folder / "model.json")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the grade."""
        grader = cls("", {})
        grader.grade = json.loads((folder / "model.json").read_text())["grade"]
        return grader

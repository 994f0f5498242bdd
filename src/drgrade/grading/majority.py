"""The baseline that every grader must beat: the most common training grade, whatever the photograph."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from drgrade.grading.base import GRADERS, Grader, Job, Output, Photographs
from drgrade.params import Experiment
from drgrade.schema import GRADES


class Params(Experiment):
    """The most common training grade."""

    grader: Literal["majority"] = "majority"
    """The module of ``drgrade.grading``."""


@GRADERS.register("majority")
class Majority(Grader):
    """Predicts one grade with certainty."""

    Params = Params
    grade: int = 0

    def fit(self, job: Job) -> None:
        """Count the training grades; the lower one wins a tie."""
        self.grade = int(np.bincount(job.train.grades, minlength=len(GRADES)).argmax())

    def predict(self, photographs: Photographs) -> Output:
        """One-hot probabilities (n, 5)."""
        return Output(np.tile(np.eye(len(GRADES))[self.grade], (len(photographs), 1)))

    def facts(self) -> dict[str, Any]:
        """The grade."""
        return {"grade": self.grade}

    def rebuild(self, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Restore the grade."""
        self.grade = facts["grade"]

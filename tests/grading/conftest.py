"""Fixtures of the graders that learn from the features of a frozen encoder."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from drgrade.grading.base import Grader, Photographs, Training
from drgrade.tracking import NullRun


class Recorded(NullRun):
    """Keeps what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def metrics(self, values, step=0) -> None:
        self.values |= values


@pytest.fixture
def fitted() -> Callable[[Grader, pd.DataFrame, pd.DataFrame], dict[str, float]]:
    """Fits a grader whose features do not come from pictures; given are its tables of photographs.

    Returns what the grader measures.
    """
    none = np.empty((0, 32, 32, 3), np.uint8)

    def fit(grader: Grader, train: pd.DataFrame, val: pd.DataFrame) -> dict[str, float]:
        run = Recorded()
        grader.fit(Training(Photographs(none, train), Photographs(none, val), "random", 0, "t", "", run))
        return run.values

    return fit

"""Points of curves: ROC of referable DR, reliability before and after calibration, and learning curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.decisions import Decided
from drgrade.evaluate.detection import rank
from drgrade.evaluate.fits import NONE
from drgrade.evaluate.metrics import REFERABLE
from drgrade.evaluate.reliability import reliability, top_label

ROC_POINTS = 101
"""Largest number of points of a ROC curve."""
ROC_COLUMNS = ("experiment", "false_positive_rate", "sensitivity")
"""Columns of ``roc.csv``: points of each curve, from (0, 0) to (1, 1)."""
RELIABILITY_COLUMNS = ("experiment", "method", "bin", "n", "confidence", "accuracy")
"""Columns of ``reliability.csv``: bins with photographs, from 1, as in :mod:`.reliability`; the method is
``none`` or ``calibrated``."""
LEARNING_COLUMNS = ("experiment", "seed", "fold", "epoch", "loss", "val_qwk")
"""Columns of ``learning_curves.csv``: mean training loss and validation QWK after each epoch, from 1."""
HISTORY = "history.csv"
"""As in :mod:`drgrade.grading.history`, which imports more than this stage may depend on."""


def roc_points(positive: NDArray[np.bool_], probability: Floats) -> Floats:
    """Return points (M, 2) of a ROC curve: false-positive rate and sensitivity, each 0-1, non-decreasing.

    Every point belongs to a threshold; nothing is interpolated. Of more than ROC_POINTS points, every k-th is
    kept, and always the first and the last.

    Args:
        positive: (N,), with both values.
        probability: (N,) probability of positive.
    """
    counts = np.stack([part[:, 0] for part in rank(positive, probability).counts()[::-1]], axis=1)
    points = np.vstack([[0, 0], counts.cumsum(axis=0) / counts.sum(axis=0)])
    kept = np.linspace(0, len(points) - 1, min(len(points), ROC_POINTS)).round().astype(int)
    return points[kept]


def roc(decided: Sequence[Decided]) -> pd.DataFrame:
    """Return ``roc.csv``: the calibrated probability of referable DR, mean of the seeds, on test photographs.

    An experiment has no rows if all or none of the photographs are referable.
    """
    rows = []
    for one in decided:
        positive = one.grades >= REFERABLE
        if positive.any() and not positive.all():
            rows += [(one.name, *point) for point in roc_points(positive, one.referable)]
    return pd.DataFrame(rows, columns=list(ROC_COLUMNS))


def reliability_bins(decided: Sequence[Decided]) -> pd.DataFrame:
    """Return ``reliability.csv``: the most probable grade's probability, and how often that grade is right.

    Rows with the method ``calibrated`` are there only if a calibration was fitted.
    """
    rows = []
    for one in decided:
        methods = {"none": one.probabilities}
        if any(fit.method != NONE for fit in one.fits):
            methods["calibrated"] = one.calibrated
        for method, probabilities in methods.items():
            curve = reliability(*top_label(one.grades, probabilities))
            rows += [
                (one.name, method, place + 1, n, curve.probability[place], curve.frequency[place])
                for place, n in enumerate(curve.count)
                if n
            ]
    return pd.DataFrame(rows, columns=list(RELIABILITY_COLUMNS))


def learning_curves(predictions: Sequence[Path]) -> pd.DataFrame:
    """Return ``learning_curves.csv``: the epochs of all trainings, in the order given.

    Args:
        predictions: ``predictions.parquet`` of each training, with its ``history.csv`` beside it; a training
            without one, or without epochs, has no rows.

    Raises:
        UserError: a history is damaged.
    """
    tables = []
    for path in predictions:
        history = path.with_name(HISTORY)
        if history.is_file():
            epochs = _read(history).reindex(columns=["epoch", "loss", "val_qwk"])
            whose = pd.read_parquet(path, columns=["experiment", "seed", "fold"]).head(1)
            tables.append(whose.merge(epochs, how="cross"))
    found = pd.concat(tables) if tables else pd.DataFrame()
    return found.reindex(columns=list(LEARNING_COLUMNS)).reset_index(drop=True)


def _read(history: Path) -> pd.DataFrame:
    """Read a table with a column ``epoch``."""
    try:
        table = pd.read_csv(history)
        table["epoch"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{history}: not a training's history ({error}); train it again") from None
    return table

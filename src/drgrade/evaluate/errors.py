"""The worst errors of an experiment on its test photographs, for the report to show."""

import numpy as np
import pandas as pd

from drgrade.evaluate.fits import mean_of
from drgrade.evaluate.metrics import to_grades
from drgrade.evaluate.predictions import PROBABILITIES

WORST = 12
"""Largest number of errors of an experiment."""
COLUMNS = ("experiment", "image_id", "grade", "predicted", "score", "probability")
"""Columns of ``errors.csv``: true and predicted grade, expected grade, probability of the predicted grade."""


def worst_errors(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the test photographs with a wrong grade that are furthest from the true one, worst first.

    Grades are those of the mean prediction of all seeds, rounded at the midpoints; probabilities are not
    calibrated.

    Args:
        name: name of the experiment.
        table: its predictions, all seeds and folds.

    Returns:
        Up to WORST rows with the columns COLUMNS.
    """
    rows = mean_of(table[table["split"] == "test"])
    predicted = to_grades(rows["score"]).astype(np.int64)
    rows = rows.assign(
        experiment=name,
        predicted=predicted,
        probability=rows[PROBABILITIES].to_numpy(float)[np.arange(len(rows)), predicted],
        distance=(rows["score"] - rows["grade"].astype(float)).abs(),
    )
    wrong = rows[rows["predicted"] != rows["grade"].astype(np.int64)]
    return wrong.sort_values(["distance", "image_id"], ascending=[False, True]).head(WORST)[list(COLUMNS)]

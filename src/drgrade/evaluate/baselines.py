"""The baselines in every leaderboard: predictions from the training grades alone.

- ``majority`` predicts the most common training grade with certainty; the lower one wins a tie.
- ``class_prior`` predicts each grade with its share among the training photographs. Its score is the expected
  grade, and its grade, as for every experiment, the rounded score.

Both say the same of every photograph. So their QWK is 0, which is also what random draws by the shares give
on average, and their AUROC 0.5. The class prior's Brier score is the one to beat.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drgrade.bootstrap import Floats
from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.grading.photographs import splits
from drgrade.schema import GRADES, PREDICTIONS, conform

MAJORITY = "majority"
CLASS_PRIOR = "class_prior"


def most_common(counts: NDArray[np.int64]) -> Floats:
    """Return the probabilities (5,) of the majority baseline, given the number of photographs by grade."""
    return np.eye(len(GRADES))[counts.argmax()]


def shares(counts: NDArray[np.int64]) -> Floats:
    """Return the probabilities (5,) of the class prior, given the number of photographs by grade."""
    return counts / counts.sum()


BASELINES: dict[str, Callable[[NDArray[np.int64]], Floats]] = {MAJORITY: most_common, CLASS_PRIOR: shares}


def baselines(like: pd.DataFrame, graded: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the predictions of both baselines, with the columns PREDICTIONS.

    Args:
        like: predictions of an experiment, all seeds and folds: the photographs to predict. Without
            validation rows, the baselines are trained on the validation photographs too, as with
            ``select: last`` and folds.
        graded: graded photographs of the dataset, with their split; see
            :meth:`drgrade.images.dataset.CroppedDataset.graded`.

    Raises:
        UserError: there are no training photographs, or none of a fold that was tested.
    """
    rows = like[like["seed"] == like["seed"].min()]
    select = "best" if (rows["split"] == "val").any() else "last"
    by_fold = {fold: _counts(parts["train"]) for fold, parts in splits(graded, select)}
    return {name: _predicted(name, rows, rule, by_fold) for name, rule in BASELINES.items()}


def _counts(train: pd.DataFrame) -> NDArray[np.int64]:
    """Number of training photographs by grade (5,)."""
    if train.empty:
        raise UserError("no graded training photographs; look at status and reason in index.parquet")
    return np.bincount(train["grade"].to_numpy(np.int64), minlength=len(GRADES))


def _predicted(
    name: str,
    rows: pd.DataFrame,
    rule: Callable[[NDArray[np.int64]], Floats],
    by_fold: Mapping[int | None, NDArray[np.int64]],
) -> pd.DataFrame:
    """Predict photographs by the training grades of their fold; external ones by the mean over folds."""
    found: dict[int | None, Floats] = {fold: rule(counts) for fold, counts in by_fold.items()}
    found.setdefault(None, np.mean(list(found.values()), axis=0))
    folds = [None if pd.isna(fold) else int(fold) for fold in rows["fold"]]
    if unknown := sorted(str(fold) for fold in set(folds) - set(found)):
        raise UserError(
            f"index.parquet has no fold {unknown[0]}, which was tested; run the stage index again"
        )
    probabilities = np.stack([found[fold] for fold in folds])
    score = probabilities @ np.array(GRADES)
    filled = dict(zip(PROBABILITIES, probabilities.T, strict=True))
    table = rows.assign(**filled, score=score, predicted=to_grades(score), experiment=name, seed=0)
    return conform(table, PREDICTIONS)

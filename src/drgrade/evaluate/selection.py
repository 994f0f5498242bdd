"""Which experiment is the best: by the QWK on validation photographs, never on the test photographs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from drgrade.evaluate.metrics import qwk

VAL_QWK = "val_qwk"
"""Key of ``metrics.json``: QWK on the validation photographs, mean over seeds."""


def validation_qwk(table: pd.DataFrame) -> float:
    """Return the QWK on the validation photographs, mean over seeds; NaN without such photographs.

    Args:
        table: predictions of an experiment, all seeds and folds.
    """
    val = table[(table["split"] == "val") & table["grade"].notna() & table["predicted"].notna()]
    by_seed = [qwk(rows["grade"], rows["predicted"]) for _, rows in val.groupby("seed")]
    return float(np.mean(by_seed)) if by_seed else np.nan


def best_validated(held_out: Mapping[str, float | None]) -> str | None:
    """Return the experiment with the highest QWK on validation photographs, the first one on a tie.

    Args:
        held_out: that QWK by experiment; None or NaN if it has no such photographs.

    Returns:
        None if no experiment has any.
    """
    known = {name: value for name, value in held_out.items() if value is not None and not np.isnan(value)}
    return max(known, key=lambda name: known[name]) if known else None

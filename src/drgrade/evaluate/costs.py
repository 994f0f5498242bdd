"""What the trainings of each experiment cost: weights by ``training.json``, time and memory by ``cost.json``.

The number of weights is the same in every run, times are not. So only the weights are in the leaderboard and
in ``metrics.json``; the rest is in tables that DVC does not record.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import sha256

COST = "cost.json"
"""As in :mod:`drgrade.grading.cost`, which imports more than this stage may depend on."""
PARAMETERS = "parameters"
"""Key of ``training.json``: number of weights."""
MEASURED = ("train_minutes", "peak_memory_gb", "images_per_s")
"""Keys of ``cost.json``, see :mod:`drgrade.grading.cost`."""
COLUMNS = ("experiment", "trainings", "resumed", PARAMETERS, *MEASURED, "device")
"""Columns of ``costs.csv``."""


def training_costs(manifests: Sequence[Path]) -> pd.DataFrame:
    """Return the costs of a training with the columns COLUMNS, one row per experiment in the order given.

    Numbers are means over the trainings of an experiment (seeds and folds) where they are known; of memory
    the highest. ``trainings`` and ``resumed`` are counts.

    Args:
        manifests: ``training.json`` of each training; a file that is not there is left out. A ``cost.json``
            beside it counts if it was written with it: after ``dvc checkout`` it may be of another training.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in manifests:
        if path.is_file():
            record = _read(path, "experiment")
            cost = _read(path.with_name(COST), "training") if path.with_name(COST).is_file() else {}
            if cost and cost["training"] == sha256(path):
                record |= cost
            found.setdefault(record["experiment"], []).append(record)
    table = pd.DataFrame([_together(name, records) for name, records in found.items()], columns=list(COLUMNS))
    return table.astype({PARAMETERS: "Int64"} | dict.fromkeys(MEASURED, "float64"))


def weights_of(costs: pd.DataFrame) -> dict[str, int | None]:
    """Return the number of weights by experiment, given a table of :func:`training_costs`."""
    return {
        name: None if pd.isna(count) else int(count)
        for name, count in zip(costs["experiment"], costs[PARAMETERS], strict=True)
    }


def _read(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON object that must have ``key``."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {key: record[key]} | record
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a training's record ({error}); train it again") from None


def _together(name: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of an experiment."""
    known = {
        key: [record[key] for record in records if record.get(key) is not None]
        for key in (PARAMETERS, *MEASURED, "device")
    }
    row: dict[str, Any] = {key: float(np.mean(known[key])) if known[key] else None for key in MEASURED}
    row["peak_memory_gb"] = max(known["peak_memory_gb"], default=None)
    row[PARAMETERS] = round(np.mean(known[PARAMETERS])) if known[PARAMETERS] else None
    return row | {
        "experiment": name,
        "trainings": len(records),
        "resumed": sum(record.get("resumed", False) for record in records),
        "device": "; ".join(dict.fromkeys(known["device"])) or None,
    }

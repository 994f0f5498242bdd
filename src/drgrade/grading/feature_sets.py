"""Feature sets: mean and standard deviation of a network's features over several views of each photograph.

The stage ``features`` writes one folder for each set and training, with four files: ``rows.parquet``,
``mean.npy`` and ``std.npy``, and ``features.json``, which is written last.

A set has the features of K networks. With K = 1 there is one network and one row for each photograph; it was
trained on the training photographs, so their features look better than those of new photographs
(``in_sample``). With K > 1 the features are cross-fitted: network k was trained without part k of the
training patients. A training photograph has one row, from the network that has not seen it; every other
photograph has a row from each of the K networks. Features of different networks cannot be compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import atomic_write, write_json
from drgrade.schema import conform, read_table, write_table

ROWS = {
    "dataset": "string",
    "image_id": "string",
    "model": "Int64",  # 0..K-1, the network that gave the row
    "row": "Int64",  # row in mean.npy and std.npy
}
"""Columns of ``rows.parquet``; a photograph has at most one row for each model."""
TABLE, MEAN, STD, FACTS = "rows.parquet", "mean.npy", "std.npy", "features.json"
FILES = (TABLE, MEAN, STD, FACTS)
"""Files of a feature set."""


@dataclass(frozen=True)
class FeatureSet:
    """The features of K networks for photographs of one or more datasets.

    Attributes:
        name: name of the set.
        models: number of networks, K.
        in_sample: whether training photographs have features of a network that was trained on them.
        rows: columns ``ROWS``.
        mean: means over the views, float32 (R, D), memory-mapped where read from files.
        std: standard deviations over the views, float32 (R, D); 0 with a single view.
    """

    name: str
    models: int
    in_sample: bool
    rows: pd.DataFrame
    mean: np.ndarray
    std: np.ndarray

    def photographs(self, dataset: str | None, image_ids: Sequence[str], model: int) -> np.ndarray:
        """Rows of ``mean`` and ``std`` for photographs, int64 (n,); -1 where this network gave none.

        Args:
            dataset: dataset of the photographs; None looks in all.
            image_ids: (n,).
            model: the network, 0..K-1.

        Raises:
            UserError: without a dataset, a photograph's name occurs in several.
        """
        rows = self.rows[self.rows["model"] == model]
        if dataset is not None:
            rows = rows[rows["dataset"] == dataset]
        names = list(image_ids)
        again = rows.loc[rows["image_id"].duplicated() & rows["image_id"].isin(names), "image_id"]
        if len(again):
            raise UserError(
                f"features {self.name}: several datasets have a photograph {again.iloc[0]}; name the dataset"
            )
        known = rows.drop_duplicates("image_id").set_index("image_id")["row"]
        return known.reindex(names).fillna(-1).to_numpy(np.int64)

    def values(self, rows: np.ndarray, *, std: bool = True) -> np.ndarray:
        """Features of rows (n,): float32 (n, 2 D), means and standard deviations, or (n, D), means alone."""
        parts = (self.mean, self.std) if std else (self.mean,)
        return np.concatenate([part[rows] for part in parts], axis=1)


def write_features(
    folder: Path, rows: pd.DataFrame, mean: np.ndarray, std: np.ndarray, facts: Mapping[str, Any]
) -> None:
    """Write a feature set; each file atomically, ``features.json`` last.

    Args:
        folder: such as ``results/demo/features/resnet/seed0``.
        rows: columns ``ROWS``.
        mean: (R, D), saved as float32.
        std: (R, D), saved as float32.
        facts: ``models`` (K) and ``in_sample``, and whatever else is worth recording, as JSON values.

    Raises:
        UserError: a feature is not a finite number.
        ValueError: rows, arrays and facts contradict each other.
    """
    for values in (mean, std):
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        if bad:
            raise UserError(
                f"{folder}: {bad} of {len(values)} rows have features that are not numbers; "
                "the network's training diverged, lower its learning rate"
            )
    rows = conform(rows, ROWS)
    if problem := _contradiction(rows, mean, std, facts):
        raise ValueError(problem)
    write_table(rows, folder / TABLE, ROWS)
    for name, values in ((MEAN, mean), (STD, std)):
        with atomic_write(folder / name) as partial:
            np.save(partial, np.asarray(values, np.float32))
    write_json(facts, folder / FACTS)


def read_facts(folder: Path, name: str) -> dict[str, Any]:
    """Content of ``features.json``.

    Args:
        folder: such as ``results/demo/features/resnet/seed0``.
        name: name of the set, for error messages.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return dict(json.loads((folder / FACTS).read_text()))
    except FileNotFoundError:
        raise UserError(f"{folder / FACTS}: no such file; run the stage features of {name} again") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / FACTS}: damaged ({error}); run the stage features of {name} again"
        ) from None


def read_features(folder: Path, name: str) -> FeatureSet:
    """Open the feature set in a folder, with memory-mapped features.

    Args:
        folder: such as ``results/demo/features/resnet/seed0``.
        name: name of the set, for error messages.

    Raises:
        UserError: a file is missing or damaged, or the files contradict each other.
    """
    again = f"run the stage features of {name} again"
    if missing := [part for part in FILES if not (folder / part).is_file()]:
        raise UserError(f"{folder / missing[0]}: no such file; {again}")
    try:
        facts = json.loads((folder / FACTS).read_text())
        mean, std = (np.load(folder / part, mmap_mode="r") for part in (MEAN, STD))
        rows = read_table(folder / TABLE, ROWS)
        problem = _contradiction(rows, mean, std, facts)
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    except (OSError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not a readable feature set ({reason}); {again}") from None
    if problem:
        raise UserError(f"{folder}: {problem}; {again}")
    return FeatureSet(name, int(facts["models"]), bool(facts["in_sample"]), rows, mean, std)


def _contradiction(
    rows: pd.DataFrame, mean: np.ndarray, std: np.ndarray, facts: Mapping[str, Any]
) -> str | None:
    """What does not fit together in a feature set; None where all does."""
    if lacking := {"models", "in_sample"} - set(facts):
        return f"{FACTS} lacks {min(lacking)!r}"
    if mean.ndim != 2 or mean.shape != std.shape:
        return f"{MEAN} is of shape {mean.shape} and {STD} of {std.shape}, not twice (rows, features)"
    if not rows["row"].between(0, len(mean) - 1).all():
        return f"{TABLE} names rows outside the {len(mean)} of {MEAN}"
    if not rows["model"].between(0, facts["models"] - 1).all():
        return f"{TABLE} names models outside the {facts['models']} of {FACTS}"
    if rows.duplicated(["dataset", "image_id", "model"]).any():
        return f"{TABLE} has several rows of one photograph and model"
    return None

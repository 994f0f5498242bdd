"""Reading prediction tables: what was tested, by which seeds, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.schema import GRADES, PREDICTIONS, read_table


@dataclass(frozen=True)
class Measured:
    """The test predictions of one experiment on one dataset, photographs in order of image_id.

    Attributes:
        name: of the experiment.
        dataset: it was tested on.
        seeds: training seeds, ascending (S,).
        photographs: image_id, patient_id, grade; one row for each photograph (N).
        predicted: grades, int64 (S, N).
        score: expected grades, float64 (S, N).
    """

    name: str
    dataset: str
    seeds: list[int]
    photographs: pd.DataFrame
    predicted: np.ndarray
    score: np.ndarray

    @property
    def grades(self) -> np.ndarray:
        """True grades, int64 (N,)."""
        return self.photographs["grade"].to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each photograph, str (N,)."""
        return self.photographs["patient_id"].to_numpy(str)


def read_experiment(path: Path) -> Measured:
    """Read the test rows of one experiment and check them.

    Raises:
        UserError: no test rows, or they are not sound; see :func:`checked`.
    """
    table = read_table(path, PREDICTIONS)
    table = table[table["split"] == "test"]
    if table.empty:
        raise UserError(f"{path}: no rows of the split test; is index.test_fraction 0?")
    return checked(table, path)


def read_external(path: Path) -> list[Measured]:
    """The predictions of one experiment on each external dataset, in order of their names; often none.

    Raises:
        UserError: the rows are not sound; see :func:`checked`.
    """
    table = read_table(path, PREDICTIONS)
    table = table[table["split"] == "external"]
    return [checked(rows, path) for _, rows in table.groupby("dataset", sort=True)]


def checked(table: pd.DataFrame, path: Path) -> Measured:
    """Tested rows of one experiment and dataset, of all seeds.

    Raises:
        UserError: several experiments in one table, a missing or impossible grade, a score that is not a
            number, a photograph twice, or seeds tested on different photographs.
    """
    table = table.sort_values(["seed", "image_id"])
    names = table["experiment"].unique()
    if len(names) != 1:
        raise UserError(
            f"{path}: holds the experiments {', '.join(map(str, names))}; one a table is expected"
        )
    for column in ("grade", "predicted"):
        bad = table[~table[column].isin(GRADES).fillna(False)]
        if len(bad):
            raise UserError(f"{path}: {bad['image_id'].iloc[0]}: {column} is {bad[column].iloc[0]}, not 0-4")
    if table["patient_id"].isna().any():
        raise UserError(f"{path}: {table.loc[table['patient_id'].isna(), 'image_id'].iloc[0]}: no patient_id")
    bad = table[~np.isfinite(table["score"].to_numpy(float, na_value=np.nan))]
    if len(bad):
        raise UserError(f"{path}: {bad['image_id'].iloc[0]}: score is not a number; train {names[0]} again")
    twice = table[table.duplicated(["seed", "image_id"])]
    if len(twice):
        raise UserError(f"{path}: {twice['image_id'].iloc[0]}: tested twice with one seed")
    parts = [part.reset_index(drop=True) for _, part in table.groupby("seed")]
    facts = ["image_id", "patient_id", "grade"]
    for one, other in pairwise(parts):
        same_rows(one[facts], other[facts], f"{path}: seed {one['seed'][0]}", f"seed {other['seed'][0]}")
    return Measured(
        name=str(names[0]),
        dataset=str(table["dataset"].iloc[0]),
        seeds=[int(part["seed"][0]) for part in parts],
        photographs=parts[0][facts],
        predicted=np.stack([part["predicted"].to_numpy(np.int64) for part in parts]),
        score=np.stack([part["score"].to_numpy(np.float64) for part in parts]),
    )


def same_rows(one: pd.DataFrame, other: pd.DataFrame, name: str, other_name: str) -> None:
    """Check that two tests saw the same photographs, with the same patients and grades.

    Raises:
        UserError: they differ; names the first photograph in question.
    """
    for has, lacks, rows, against in ((name, other_name, one, other), (other_name, name, other, one)):
        only = sorted(set(rows["image_id"]) - set(against["image_id"]))
        if only:
            raise UserError(
                f"{has}: tested on {len(only)} photographs that {lacks} lacks ({only[0]}, ...); "
                "train both on the same index"
            )
    differs = (one != other).any(axis=1)
    if differs.any():
        raise UserError(
            f"{name}: {one.loc[differs, 'image_id'].iloc[0]} has another grade or patient in {other_name}; "
            "train both on the same index"
        )


def same_photographs(experiments: Sequence[Measured]) -> None:
    """Check that all experiments have different names and the same test photographs.

    Raises:
        UserError: they do not.
    """
    for place, one in enumerate(experiments):
        if one.name in {other.name for other in experiments[:place]}:
            raise UserError(f"{one.name}: two prediction tables hold this experiment")
        first = experiments[0]
        same_rows(first.photographs, one.photographs, first.name, one.name)

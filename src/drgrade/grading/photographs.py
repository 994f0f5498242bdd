"""Select the training, validation and test photographs of each training."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.rng import numpy_rng
from drgrade.splits.assign import label_subset

Parts = dict[str, pd.DataFrame]
"""Rows of :meth:`drgrade.images.dataset.CroppedDataset.graded` by split: train, val, test; and, if a part of
the training patients is left out, left_out."""


def splits(table: pd.DataFrame, select: str) -> Iterator[tuple[int | None, Parts]]:
    """Yield the fold and the splits of each training of one seed; fold is None with a hold-out split.

    With cross-validation there is one training per fold k, tested on fold k. With ``select: best`` it is
    validated on the next fold; with ``last`` there is no validation set, and that fold is trained on.
    """
    if table["fold"].isna().all():
        yield None, {part: table[table["split"] == part] for part in ("train", "val", "test")}
        return
    folds = sorted(table["fold"].dropna().unique())
    for place, fold in enumerate(folds):
        val = folds[(place + 1) % len(folds)] if select == "best" else None
        held_out = table["fold"].eq(val).fillna(False) if val is not None else np.zeros(len(table), bool)
        test = table["fold"].eq(fold).fillna(False)
        yield int(fold), {"train": table[~test & ~held_out], "val": table[held_out], "test": table[test]}


def parts_of(
    table: pd.DataFrame,
    *,
    seed: int,
    fold: int | None,
    select: str,
    label_fraction: float,
    part: tuple[int, int] | None = None,
) -> Parts:
    """The photographs of one training.

    Args:
        table: graded photographs.
        seed: seed for drawing the labelled subset.
        fold: test fold, or None with a hold-out split.
        select: as in ``grade.select``.
        label_fraction: share of the training patients whose grades may be used.
        part: (k, n) leaves out part k (from 0) of n of these patients; None leaves out none.

    Raises:
        UserError: the table has no such fold, there is nothing to train on, or there are more parts than
            patients.
    """
    found = dict(splits(table, select))
    if fold not in found:
        there = ", ".join("none" if one is None else str(one) for one in found)
        raise UserError(f"--fold {fold}: the index has the folds {there}; run the stage index again")
    parts = found[fold]
    train = parts["train"]
    if label_fraction < 1:
        train = train[train["image_id"].isin(label_subset(train, label_fraction, seed))]
    if train.empty:
        raise UserError("no graded training photographs; look at status and reason in index.parquet")
    if part is None:
        return parts | {"train": train}
    patients = train["patient_id"].nunique()
    if not 2 <= part[1] <= patients:
        raise UserError(
            f"experiments.<name>.out_of_fold: {patients} training patients cannot be divided into {part[1]} "
            "parts; take from 2 parts to one for each patient"
        )
    out = part_numbers(train, part[1], seed) == part[0]
    return parts | {"train": train[~out], "left_out": train[out]}


def part_numbers(train: pd.DataFrame, parts: int, seed: int) -> np.ndarray:
    """Divide training photographs into parts of whole patients: int64 (n,), 0 to ``parts`` - 1.

    Patients are ordered by the mean grade of their photographs, then at random, and dealt out in turn, so
    that all parts have similar grades.

    Args:
        train: patient_id and grade of each photograph.
        parts: number of parts.
        seed: seed of the order of patients with equal grades.
    """
    mean = train.groupby("patient_id", sort=True)["grade"].mean()
    chance = pd.Series(numpy_rng(seed, "out of fold").random(len(mean)), index=mean.index)
    ordered = pd.DataFrame({"mean": mean.astype(float), "chance": chance}).sort_values(["mean", "chance"])
    number = pd.Series(np.arange(len(ordered)) % parts, index=ordered.index)
    return train["patient_id"].map(number).to_numpy(np.int64)

"""Folds of cross-validation: read from a file, or groups dealt out so that all folds have similar grades."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.lists import read_lines


def assign_folds(table: pd.DataFrame, ordered: Sequence[str], params: Index) -> pd.Series:
    """Return the fold of each row of the grading subset, from ``folds_file`` or by :func:`deal`.

    Args:
        table: image_id, grade, status and group.
        ordered: the groups, by stratum and within it by the seed.
        params: number of folds, and the file.

    Raises:
        UserError: the file is invalid, or lacks a graded photograph.
    """
    if params.folds_file is None:
        return table["group"].map(deal(table, ordered, params.folds))
    path = Path(params.folds_file)
    fold = read_folds(path, params.folds)
    graded = table["grade"].notna() & (table["status"] == "ok")
    lacking = table.loc[graded & ~table["image_id"].isin(fold.keys()), "image_id"]
    if len(lacking):
        raise UserError(
            f"{path}: no fold for {len(lacking)} graded photographs, such as {lacking.iloc[0]}; add them"
        )
    return table["image_id"].map(fold)


def deal(table: pd.DataFrame, ordered: Sequence[str], folds: int) -> dict[str, int]:
    """Return the fold of each group: the largest first, each where its grades are rarest so far.

    Groups of equal size keep their order, and among equal folds the one with the fewest photographs is next:
    groups of one photograph are dealt out in turn.

    Args:
        table: group and grade of each photograph.
        ordered: the groups.
        folds: number of folds.
    """
    grades = table["grade"].astype("Float64").fillna(-1).tolist()
    totals, members = Counter(grades), defaultdict[str, Counter[float]](Counter)
    for group, grade in zip(table["group"], grades, strict=True):
        members[group][grade] += 1
    held = [Counter[float]() for _ in range(folds)]

    def crowding(group: str, fold: int) -> tuple[float, int, int]:
        """Sort key of a fold: the share that it holds of the group's grades, then its size."""
        shares = (count * held[fold][grade] / totals[grade] for grade, count in members[group].items())
        return math.fsum(shares), held[fold].total(), fold  # fsum: the order of the rows does not matter

    found: dict[str, int] = {}
    for group in sorted(ordered, key=lambda group: -members[group].total()):
        *_, found[group] = min(crowding(group, fold) for fold in range(folds))
        held[found[group]].update(members[group])
    return found


def read_folds(path: Path, folds: int) -> dict[str, int]:
    """Read the fold of each image_id from a CSV (image_id, fold); lines without a fold are skipped.

    Raises:
        UserError: there is no such file, or a line is invalid.
    """
    found: dict[str, int] = {}
    for number, line in read_lines(path, "index.folds_file"):
        image_id, fold = line.get("image_id"), line.get("fold")
        if image_id and fold == "":
            continue
        if not image_id or not fold or not fold.isdigit() or int(fold) >= folds:
            raise UserError(
                f"{path}: line {number}: needs image_id and a fold of 0 to {folds - 1}; correct it"
            )
        if found.setdefault(image_id, int(fold)) != int(fold):
            raise UserError(
                f"{path}: line {number}: {image_id} is in fold {found[image_id]} already; keep one line"
            )
    return found

"""Read predefined splits: CSV lists of photographs and the part each belongs to."""

import logging
from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.tables import read_csv

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
OTHERS = "*"
"""Wildcard in a list for all graded photographs that it does not name."""


def read_lines(path: Path, key: str) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a table with their line numbers; missing cells are empty. ``key``: param to name.

    Raises:
        UserError: there is no such file, or it is not a table (:func:`drgrade.tables.read_csv`).
    """
    header, lines = read_csv(path, f"commit it or set {key} to null")
    return [(number, dict.fromkeys(header, "") | cells) for number, cells in lines]


def read_split_list(path: Path) -> dict[str, str]:
    """Read the part of each image_id from a CSV (image_id, split); other columns are ignored.

    The part is train, val, test, or empty for a photograph that is not used. The image_id ``*`` stands for
    all graded photographs that are not listed, so the line ``*,`` leaves them out.

    Raises:
        UserError: there is no such file, a part is invalid, or an image_id has two parts.
    """
    found: dict[str, str] = {}
    for number, line in read_lines(path, "datasets.<name>.split_file"):
        image_id, part = line.get("image_id", ""), line.get("split")
        if not image_id or part is None or part not in (*PARTS, ""):
            raise UserError(
                f"{path}: line {number}: needs an image_id and a split of train, val, test or nothing"
            )
        if found.setdefault(image_id, part) != part:
            raise UserError(
                f"{path}: line {number}: {image_id} is {found[image_id] or 'left out'} already; keep one line"
            )
    return found


def split_as_listed(table: pd.DataFrame, path: Path) -> pd.Series:
    """Return the part of each grading row according to a list; missing if the list leaves it out.

    Raises:
        UserError: the list is invalid, names none of the photographs, or lacks a graded one.
    """
    listed = read_split_list(path)
    others = listed.pop(OTHERS, None)
    known = table["image_id"].isin(listed.keys())
    if not known.any():
        example = "" if table.empty else f", such as {table['image_id'].iloc[0]}"
        raise UserError(
            f"{path}: lists none of the dataset's image_ids{example}; name photographs as the index does"
        )
    lacking = table.loc[~known & table["grade"].notna() & (table["status"] == "ok"), "image_id"]
    if len(lacking) and others is None:
        raise UserError(
            f"{path}: no split for {len(lacking)} graded photographs, such as {lacking.iloc[0]}; "
            f"list them, or add the line '{OTHERS},' to leave them out"
        )
    if len(lacking):
        log.warning(
            "%s: %d graded photographs are not listed: %s", path.name, len(lacking), others or "left out"
        )
    absent = len(listed) - int(known.sum())
    if absent:
        log.warning(
            "%s: %d of %d listed photographs are not among those to be graded", path.name, absent, len(listed)
        )
    graded = table["grade"].notna()
    parts = table["image_id"].map(listed).astype("string").mask(~known & graded, others or "")
    return parts.mask(parts == "", pd.NA)

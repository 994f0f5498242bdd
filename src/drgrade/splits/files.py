"""Save a split as a CSV file, with a JSON file of its digest and counts."""

import io
from pathlib import Path

import pandas as pd

from drgrade.files import sha256, write_file, write_json
from drgrade.params import Index
from drgrade.splits.assign import label_fractions
from drgrade.splits.overlaps import part_of

SPLIT = {
    "image_id": "string",
    "patient_id": "string",
    "grade": "Int8",
    "split": "string",
    "fold": "Int8",
    "label_fraction": "Float64",  # the smallest of splits.FRACTIONS that a training photograph belongs to
}
"""Columns of a saved split: one row per photograph that is used, sorted by image_id."""


def write_split(table: pd.DataFrame, path: Path, params: Index, index: Path) -> str:
    """Save a split as a CSV (columns SPLIT), with digests and counts in a JSON file next to it.

    Args:
        table: an index with split and fold; rows with status ok and a split are saved.
        path: the CSV to write; equal tables give identical files.
        params: scheme and seed; the seed also determines the label fractions.
        index: ``index.parquet`` as written; its digest is stored in the JSON.

    Returns:
        SHA-256 of the CSV.
    """
    rows = table[(table["status"] == "ok") & table["split"].notna()]
    training = rows[(rows["split"] == "train") & (rows["subset"] == "grading") & rows["grade"].notna()]
    fractions = label_fractions(training, params.seed).reindex(rows.index)
    rows = rows.assign(label_fraction=fractions.astype("Float64")).sort_values("image_id")
    text = io.StringIO()
    rows[list(SPLIT)].to_csv(text, index=False, lineterminator="\n")
    write_file(path, text.getvalue().encode())
    digest = sha256(path)
    summary = {
        "sha256": digest,
        "index": sha256(index),
        "seed": params.seed,
        "scheme": params.scheme,
        "counts": _counts(rows),
    }
    write_json(summary, path.with_suffix(".json"))
    return digest


def _counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count photographs by part (train, val, test, fold k) and grade, and the patients of each part."""
    counts: dict[str, dict[str, int]] = {}
    for part, members in rows.groupby(part_of(rows), sort=True):
        grades = members["grade"].value_counts().sort_index()
        counts[str(part)] = {f"grade {grade}": int(n) for grade, n in grades.items()} | {
            "photographs": len(members),
            "patients": int(members["patient_id"].nunique()),
        }
    return counts

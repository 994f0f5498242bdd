"""The tables that pass between stages: their columns, types and allowed values.

Every stage reads and writes its tables through this module, so each format is defined once.
Boxes are half-open pixel intervals ``[x1, x2) x [y1, y2)``; each table states its coordinate frame.
"""

from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.files import atomic_write

GRADES = (0, 1, 2, 3, 4)
GRADE_NAMES = ("none", "mild", "moderate", "severe", "proliferative")
LESIONS = ("MA", "HE", "EX", "SE")
LESION_NAMES = {
    "MA": "microaneurysm",
    "HE": "haemorrhage",
    "EX": "hard exudate",
    "SE": "soft exudate",
}

INDEX = {
    "image_id": "string",  # unique within a dataset, safe as a file name
    "path": "string",  # relative to the dataset's root
    "sha256": "string",
    "width": "Int32",
    "height": "Int32",
    "patient_id": "string",
    "eye": "string",  # left, right or missing
    "grade": "Int8",  # 0-4 or missing
    "fov": "Float32",  # 0-1, share of the field of view's outline that was found; missing when not assessed
    "sharpness": "Float32",  # 0-1, as are the next three
    "exposure": "Float32",
    "contrast": "Float32",
    "quality": "Float32",  # gradability from the four above
    "quality_label": "string",  # the dataset's own: good, usable, reject, or missing
    "phash": "string",  # 256-bit perceptual hash, 64 hexadecimal digits, or missing
    "retina": "boolean",  # whether it looks like a photograph of a retina
    "subset": "string",  # grading, segmentation
    "split": "string",  # train, val, test
    "fold": "Int8",  # 0..k-1 with cross-validation, else missing
    "status": "string",  # ok, unlabelled, filtered (readable, not used), unreadable, missing
    "reason": "string",  # empty when ok
}
"""``index.parquet``, one row for each photograph or label, whatever its status."""

CROPS = {
    "image_id": "string",
    "row": "Int64",  # row in the store, missing when failed
    "x0": "Int32",  # crop box in original pixels; may reach outside the photograph
    "y0": "Int32",
    "x1": "Int32",
    "y1": "Int32",
    "scale": "Float64",  # crop pixels for each original pixel
    "rule": "string",  # the rule that found the box, or the name of a fallback
    "status": "string",  # ok, failed
    "reason": "string",
}
"""``crops.parquet``, one row for each row of the index."""

LESION_BOXES = {
    "image_id": "string",
    "x1": "Float32",
    "y1": "Float32",
    "x2": "Float32",
    "y2": "Float32",
    "score": "Float32",
    "lesion": "string",
}
"""``lesions.parquet``: detections in original pixels."""

MASKS = {
    "image_id": "string",
    "row": "Int64",  # row in masks.npy
    "annotated": "UInt8",  # lesion types that were annotated, one bit each
    "status": "string",  # ok, failed
    "reason": "string",
}
"""``masks.parquet``, one row for each photograph with lesion masks."""

PREDICTIONS = {
    "dataset": "string",
    "image_id": "string",
    "patient_id": "string",
    "eye": "string",
    "split": "string",  # val, test, or external (all of another dataset)
    "grade": "Int8",
    "score": "Float64",  # expected grade, 0-4
    "p0": "Float64",
    "p1": "Float64",
    "p2": "Float64",
    "p3": "Float64",
    "p4": "Float64",
    "predicted": "Int8",
    "experiment": "string",
    "seed": "Int64",
    "fold": "Int8",  # test fold of the model; missing without cross-validation
}
"""``predictions.parquet`` of one training, the same for every grader."""


def takes_part(index: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows of an index are used: those with status ok, and unlabelled ones unless they are ungradable.

    Ungraded photographs are used for lesion detection and pretraining, not to train or test graders.
    """
    unlabelled = (index["status"] == "unlabelled") & (index["quality_label"] != "reject").fillna(True)
    return ((index["status"] == "ok") | unlabelled).astype(bool)


def conform(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """``table`` with exactly these columns, in this order and of these types.

    Raises:
        UserError: a column is missing.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"table lacks the columns {', '.join(missing)}")
    return table[list(columns)].astype(columns).reset_index(drop=True)


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Read a parquet table and check its columns, see :func:`conform`.

    Raises:
        UserError: the file is not there, is not parquet, or lacks a column.
    """
    try:
        return conform(pd.read_parquet(path), columns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet table ({error})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_table(table: pd.DataFrame, path: Path, columns: dict[str, str]) -> None:
    """Write a parquet table with these columns, see :func:`conform`; atomically."""
    with atomic_write(path) as partial:
        conform(table, columns).to_parquet(partial, index=False)

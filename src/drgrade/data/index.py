"""List a dataset's photographs with their labels, state and split: ``index.parquet``."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from drgrade.data.download import read_manifest
from drgrade.data.registry import DATASETS, raw_root
from drgrade.data.splits import assign_splits, limit_patients
from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.schema import INDEX, write_table

log = logging.getLogger(__name__)

THREADS = 8
ORIENTATION = 0x0112
"""EXIF tag; from 5 on, width and height are exchanged for display."""


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a photograph as displayed, from its header alone.

    Raises:
        ValueError: the file is empty, unreadable or not an image; says which.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= 5
    except UnidentifiedImageError:
        raise ValueError("empty file" if path.stat().st_size == 0 else "not an image") from None
    except (
        OSError,
        SyntaxError,
        TypeError,
        Image.DecompressionBombError,
    ) as error:  # broken headers raise any of these
        raise ValueError(f"unreadable header: {' '.join(str(error).split())}") from None
    return (height, width) if turned else (width, height)


def _state(
    root: Path, path: str | None, grade: int | None, subset: str, size: int | None
) -> tuple[object, ...]:
    """Width, height, status and reason of one row; ``size`` in bytes as the manifest has it."""
    if path is None:
        return None, None, "missing", "label without a photograph"
    file = root / path
    if size is None or file.stat().st_size != size:
        raise UserError(f"{file}: not as in the manifest; run drgrade download {root.name} again")
    try:
        width, height = read_size(file)
    except ValueError as error:
        return None, None, "unreadable", str(error)
    if grade is None and subset == "grading":
        return width, height, "unlabelled", "no label"
    return width, height, "ok", ""


def _limited(table: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """Rows of ``limit`` graded photographs' patients, and all of the segmentation subset."""
    graded = table[(table["subset"] == "grading") & table["grade"].notna() & table["path"].notna()]
    if len(graded) <= limit:
        return table
    patients = limit_patients(graded, limit, seed)
    if not patients:
        raise UserError(f"limit: {limit} is less than the photographs of any one patient; raise it")
    kept = table[table["patient_id"].isin(patients) | (table["subset"] != "grading")]
    log.info("limit %d: %d of %d patients kept", limit, len(patients), graded["patient_id"].nunique())
    return kept.reset_index(drop=True)


def build_index(dataset: str, params: Index, limit: int | None, manifest: Path, out: Path) -> None:
    """Join photographs and labels of ``dataset``, look into each header, split by patient, write ``out``.

    A photograph that cannot be used is a row with a status and a reason. SHA-256 come from ``manifest``.

    Raises:
        UserError: a label file is broken, the raw files changed since the manifest, or the split is
            impossible.
    """
    root, listed = raw_root(dataset), read_manifest(manifest)
    table = (
        DATASETS.get(dataset)()
        .read(root)
        .astype({"grade": "Int8", "path": "string", "official_split": "string"})
    )
    if not len(table):
        raise UserError(f"{root}: no photographs and no labels; see the dataset's layout")
    if limit is not None:
        table = _limited(table, limit, params.seed)
    table = table.sort_values("image_id", ignore_index=True)
    paths = [path if isinstance(path, str) else None for path in table["path"]]
    grades = [None if pd.isna(grade) else int(grade) for grade in table["grade"]]
    facts = [listed.get(path, (None, None)) if path else (None, None) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = [size for size, _ in facts]
        states = list(pool.map(_state, [root] * len(table), paths, grades, table["subset"], sizes))
    table[["width", "height", "status", "reason"]] = pd.DataFrame(states, index=table.index)
    table["sha256"] = pd.array([digest for _, digest in facts], dtype="string")
    for measured in ("fov", "sharpness", "exposure", "contrast", "quality", "quality_label", "phash"):
        table[measured] = pd.NA
    table = assign_splits(table, params)
    log.info(
        "%s: %s", dataset, ", ".join(f"{n} {status}" for status, n in table["status"].value_counts().items())
    )
    write_table(table, out, INDEX)

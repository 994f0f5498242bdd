"""Choose the detections that pretraining looks at: ``patches.pkl``, the field's format.

Rules of Huang et al., MICCAI 2021 (specification 6.2), on crops of any size.
"""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import whole, write_json
from drgrade.images.geometry import CropGeometry
from drgrade.params import Patches
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table

log = logging.getLogger(__name__)

Boxes = dict[str, dict[str, list[tuple[float, float, float, float]]]]
"""Split -> image_id -> boxes (x1, y1, x2, y2) in crop pixels."""

SIDE = 512
"""Side of the crops for which the paper states its border."""
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Scores for which the statistics are given; the paper varies them."""
PROTOCOL = 4
COLUMNS = ["x1", "y1", "x2", "y2"]


def make_patches(
    index: Path, crops: Path, size: int, lesions: Path, params: Patches, out: Path, statistics: Path
) -> None:
    """Filter detections and move them into crop space.

    Photographs of the splits train and val take part (under cross-validation, all graded ones, as train:
    no grade is used); of those with masks only the ones the detector was trained on. A photograph of the
    test split never does; one without a box that passes is left out.

    Args:
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        size: side of a crop in pixels.
        lesions: ``lesions.parquet``, in original pixels.
        params: patch size, score, border and kinds of lesion.
        out: the pickle: ``{"train": {image_id: [(x1, y1, x2, y2), ...]}, "val": {...}}``, floats.
        statistics: JSON with images and boxes, by lesion, at several scores and the chosen one.

    Raises:
        UserError: no detection in the training split passes.
    """
    table = _in_crop_space(read_table(lesions, LESION_BOXES), _rows(index), read_table(crops, CROPS), size)
    fits = table[fitting(table[COLUMNS].to_numpy(float), params, size)]
    fits = fits[fits["lesion"].isin(params.lesions)]
    chosen = fits[fits["score"] > params.min_score]
    if not (chosen["split"] == "train").any():
        best = fits.loc[fits["split"] == "train", "score"].max()
        scored = "none fits" if pd.isna(best) else f"the best that fits scores {best:.2f}"
        raise UserError(
            f"{lesions}: none of {len(table)} detections passes patches.min_score {params.min_score}, size "
            f"{params.size} and border {params.border} ({scored}); relax these"
        )
    write_patches(_boxes(chosen), out)
    scores = sorted({*THRESHOLDS, params.min_score})
    write_json(
        {
            "min_score": params.min_score,
            "thresholds": {f"{score:g}": _count(fits[fits["score"] > score]) for score in scores},
        },
        statistics,
    )
    log.info("%d boxes on %d photographs", len(chosen), chosen["image_id"].nunique())


def fitting(boxes: np.ndarray, params: Patches, size: int) -> np.ndarray:
    """Which boxes (n, 4) in crop space fit a patch and stay clear of the border; (n,) bool.

    A box may be as large as the patch (``<=``) and must stay strictly inside the border, which is
    ``params.border`` pixels at 512 px crops.
    """
    border = params.border * size / SIDE
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = (boxes[:, :2] > border) & (boxes[:, 2:] < size - border)
    return ((sides <= params.size) & inside).all(axis=1)


def write_patches(patches: Boxes, path: Path) -> None:
    """Write the pickle; the same boxes give the same bytes."""
    with whole(path) as partial:
        partial.write_bytes(pickle.dumps(patches, protocol=PROTOCOL))


def read_patches(path: Path) -> Boxes:
    """Read a patch pickle, ours or a published one, without running code from it.

    Raises:
        UserError: the file is missing, is not a pickle, holds anything but numbers in containers, or has
            another structure.
    """
    content = _read_pickle(path)
    try:
        return {
            str(split): {str(name): [_box(*box) for box in boxes] for name, boxes in images.items()}
            for split, images in content.items()
        }
    except (AttributeError, TypeError, ValueError):
        form = "{split: {image: [(x1, y1, x2, y2), ...]}}"
        raise UserError(f"{path}: not {form}; is it a raw prediction file?") from None


def read_raw(path: Path, params: Patches, size: int, *, legacy_swap: bool) -> Boxes:
    """Patches from published raw predictions.

    These are ``{set: {image: [(R, C, x1, y1, x2, y2, score, class), ...]}}``: R and C are the rows and
    columns of the cropped, unscaled image that the boxes lie in; class counts microaneurysm, haemorrhage,
    hard exudate, soft exudate from 0 (specification 6.1).

    Args:
        path: the pickle.
        params: the filter.
        size: side of the crops the boxes are moved to.
        legacy_swap: scale x by the rows and y by the columns, as the published code did by mistake: for
            reproducing its patches, which are off by the aspect ratio of the crop.

    Raises:
        UserError: as :func:`read_patches`.
    """
    content = _read_pickle(path)
    try:
        tables = {
            (str(split), str(name)): np.array(rows, dtype=np.float64).reshape(-1, 8)
            for split, images in content.items()
            for name, rows in images.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: not raw predictions (8 numbers a detection); is it a patch file?") from None
    patches: Boxes = {"train": {}, "val": {}}
    for (split, name), rows in sorted(tables.items()):
        across, down = (rows[:, 0], rows[:, 1]) if legacy_swap else (rows[:, 1], rows[:, 0])
        boxes = rows[:, 2:6] * (size / np.stack([across, down, across, down], axis=1))
        wanted = np.isin(rows[:, 7], [LESIONS.index(lesion) for lesion in params.lesions])
        keep = fitting(boxes, params, size) & wanted & (rows[:, 6] > params.min_score)
        if keep.any():
            patches.setdefault(split, {})[name] = [_box(*box) for box in boxes[keep]]
    return patches


def _rows(index: Path) -> pd.DataFrame:
    """image_id and split of the photographs that may be looked at."""
    table = read_table(index, INDEX)
    table = table[table["status"] == "ok"]
    graded = table["subset"] == "grading"
    split = table["split"].mask(graded & table["fold"].notna(), "train")
    allowed = (graded & split.isin(["train", "val"])) | (~graded & (split == "train"))
    return table.assign(split=split).loc[allowed, ["image_id", "split"]]


def _in_crop_space(lesions: pd.DataFrame, rows: pd.DataFrame, crops: pd.DataFrame, size: int) -> pd.DataFrame:
    """Detections of the given photographs with their split, boxes moved to crop pixels, in order."""
    geometry = {
        str(row["image_id"]): CropGeometry.from_row(row, size)
        for _, row in crops[crops["status"] == "ok"].iterrows()
    }
    found = lesions.merge(rows, on="image_id")
    found = found[found["image_id"].isin(geometry)].astype(dict.fromkeys(COLUMNS, "Float64"))
    for image_id, part in found.groupby("image_id"):
        found.loc[part.index, COLUMNS] = geometry[str(image_id)].boxes_to_crop(part[COLUMNS].to_numpy(float))
    order = ["image_id", "score", *COLUMNS]
    return found.sort_values(order, ascending=[True, False] + [True] * len(COLUMNS))


def _boxes(table: pd.DataFrame) -> Boxes:
    patches: Boxes = {"train": {}, "val": {}}
    for (split, image_id), part in table.groupby(["split", "image_id"], sort=True):
        patches[str(split)][str(image_id)] = [_box(*box) for box in part[COLUMNS].to_numpy(float)]
    return patches


def _box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    return float(x1), float(y1), float(x2), float(y2)


def _count(table: pd.DataFrame) -> dict[str, Any]:
    return {
        split: {
            "images": int(part["image_id"].nunique()),
            "boxes": len(part),
            "lesions": {lesion: int((part["lesion"] == lesion).sum()) for lesion in LESIONS},
        }
        for split in ("train", "val")
        for part in [table[table["split"] == split]]
    }


class _NumbersOnly(pickle.Unpickler):
    """Reads containers, text and numbers, NumPy's scalars among them; refuses everything that is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            from numpy._core.multiarray import scalar

            return scalar
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 spells bytes
            return _latin1
        raise pickle.UnpicklingError(f"refers to {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refers to the codec {encoding}")
    return text.encode(encoding)


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = _NumbersOnly(file).load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the patches stage first") from None
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a pickle of plain numbers ({reason})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of splits")
    return content

"""Select the boxes whose patches are used for pretraining and write them to ``patches.pkl``.

Selection rules and file format of Huang et al., MICCAI 2021 (specification 6.2), on crops of any size.
"""

import logging
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.images.geometry import CropGeometry
from drgrade.lesions.box_sources import Places, at_random, detected, masked, published
from drgrade.lesions.patches import COLUMNS, SIDE, Boxes, fitting, write_patches
from drgrade.params import LesionBoxes, Patches, Source
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table, takes_part, write_table

log = logging.getLogger(__name__)

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Score thresholds for which statistics are written; the paper compares them."""


def make_patches(
    dataset: str,
    index: Path,
    crops: Path,
    size: int,
    lesions: Path | None,
    masks: LesionBoxes,
    source: Source,
    params: Patches,
    out: Path,
    kinds: Path,
    statistics: Path,
) -> None:
    """Read boxes from their source, filter them, and write them in crop pixels.

    Graded photographs of the splits train and val are used (under cross-validation all of them, as train:
    no grade is used); of the photographs with masks, only those the detector was trained on. Photographs of
    the test split are never used; those with fewer than ``params.min_count`` remaining boxes are dropped.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        size: side of a crop in pixels.
        lesions: ``lesions.parquet``, in original pixels; None if the source needs no detections.
        masks: how lesion masks are converted to boxes.
        source: where the boxes come from.
        params: patch size, score, border, kinds of lesion and minimum count.
        out: the pickle: ``{"train": {image_id: [(x1, y1, x2, y2), ...]}, "val": {...}}``, floats.
        kinds: the same boxes as a table (``LESION_BOXES``, crop pixels), with the lesion kinds and scores
            that the pickle cannot hold; the boxes of a photograph are in the pickle's order.
        statistics: JSON with the numbers of images and boxes, by lesion, for the selected boxes and, if boxes
            have scores, for other thresholds. A random box counts as the kind of the box it was moved from.

    Raises:
        UserError: no box of the training split passes the filter, or the source is missing.
    """
    rows = _rows(index)
    places = _places(crops, size, rows)
    found = _from_source(source, dataset, rows, places, size, lesions, masks, params)
    found = found.merge(rows[["image_id", "split"]], on="image_id")
    order = ["image_id", "score", *COLUMNS]
    found = found.sort_values(order, ascending=[True, False] + [True] * len(COLUMNS)).reset_index(drop=True)
    fits = found[fitting(found[COLUMNS].to_numpy(float), params, size)]
    fits = _of_kinds(fits, params)
    chosen = _above(fits, params.min_score, params.min_count)
    if not (chosen["split"] == "train").any():
        raise UserError(_why_none(lesions, found, fits, params))
    if source == "random":
        chosen = at_random(chosen, rows, places, params.border * size / SIDE, params.seed)
    write_patches(_boxes(chosen), out)
    write_table(chosen.sort_values("image_id", kind="stable")[list(LESION_BOXES)], kinds, LESION_BOXES)
    write_json(_statistics(source, fits, chosen, params), statistics)
    log.info("%d boxes on %d photographs", len(chosen), chosen["image_id"].nunique())


def _statistics(source: Source, fits: pd.DataFrame, chosen: pd.DataFrame, params: Patches) -> dict[str, Any]:
    """Return the source of the boxes and their counts, at the chosen and at other score thresholds."""
    scored = bool(fits["score"].notna().all())
    return {
        "source": source,
        "published": Path(params.published).name if params.published and source != "masks" else None,
        "min_score": params.min_score if scored else None,
        "chosen": _count(chosen),
        "thresholds": {
            f"{score:g}": _count(_above(fits, score, params.min_count)) for score in THRESHOLDS if scored
        },
    }


def _from_source(
    source: Source,
    dataset: str,
    rows: pd.DataFrame,
    places: Places,
    size: int,
    lesions: Path | None,
    masks: LesionBoxes,
    params: Patches,
) -> pd.DataFrame:
    """Return all boxes before filtering; for the source random, the boxes that are later moved."""
    if source == "masks":
        return masked(dataset, rows[rows["image_id"].isin(places.keys())], places, masks)
    if params.published:
        return published(Path(params.published), places, size, legacy_swap=params.legacy_swap)
    if lesions is None:
        raise UserError(f"boxes: {source}: needs lesions.parquet; run the lesions stage first")
    return detected(lesions, places)


def _rows(index: Path) -> pd.DataFrame:
    """Return image_id, subset, split, width and height of the photographs that may be used."""
    table = read_table(index, INDEX)
    table = table[takes_part(table)]
    graded = table["subset"] == "grading"
    split = table["split"].mask(graded & table["fold"].notna(), "train")
    allowed = (graded & split.isin(["train", "val"])) | (~graded & (split == "train"))
    return table.assign(split=split).loc[allowed, ["image_id", "subset", "split", "width", "height"]]


def _places(crops: Path, size: int, rows: pd.DataFrame) -> Places:
    """Return crop geometry by image_id for ``rows``; photographs without a crop are left out."""
    table = read_table(crops, CROPS)
    table = table[(table["status"] == "ok") & table["image_id"].isin(rows["image_id"])]
    boxes = table[["x0", "y0", "x1", "y1"]].to_numpy(np.int64).tolist()
    named = zip(table["image_id"].tolist(), boxes, strict=True)
    return {name: CropGeometry(x0, y0, x1, y1, size) for name, (x0, y0, x1, y1) in named}


def _of_kinds(table: pd.DataFrame, params: Patches) -> pd.DataFrame:
    if set(params.lesions) == set(LESIONS):
        return table
    if table["lesion"].isna().any():
        raise UserError(
            f"patches.lesions: {params.published} does not tell kinds of lesion apart; "
            f"keep all four, or take raw predictions"
        )
    return table[table["lesion"].isin(params.lesions)]


def _above(table: pd.DataFrame, score: float, min_count: int) -> pd.DataFrame:
    """Keep boxes with a score above ``score`` or without one, on photographs with at least ``min_count``."""
    table = table[(table["score"].isna() | (table["score"] > score)).astype(bool)]
    return table[table.groupby("image_id")["image_id"].transform("size") >= min_count]


def _why_none(lesions: Path | None, found: pd.DataFrame, fits: pd.DataFrame, params: Patches) -> str:
    best = fits.loc[fits["split"] == "train", "score"].max()
    scored = "" if pd.isna(best) else f" (the best that fits scores {best:.2f})"
    return (
        f"{params.published or lesions or 'lesion masks'}: none of {len(found)} boxes passes "
        f"patches.min_score {params.min_score}, size {params.size}, border {params.border} and "
        f"min_count {params.min_count} in the training split{scored}; relax these"
    )


def _boxes(table: pd.DataFrame) -> Boxes:
    patches: Boxes = {"train": {}, "val": {}}
    table = table.sort_values(["split", "image_id"], kind="stable")
    sides = table[COLUMNS].to_numpy(np.float64).T.tolist()
    named = zip(table["split"].tolist(), table["image_id"].tolist(), *sides, strict=True)
    for (split, image_id), rows in groupby(named, key=itemgetter(0, 1)):
        patches[split][image_id] = [(x1, y1, x2, y2) for _, _, x1, y1, x2, y2 in rows]
    return patches


def _count(table: pd.DataFrame) -> dict[str, Any]:
    """Count images and boxes by split, and boxes by kind of lesion if all kinds are known."""
    counts: dict[str, Any] = {}
    for split in ("train", "val"):
        part = table[table["split"] == split]
        counts[split] = {"images": int(part["image_id"].nunique()), "boxes": len(part)}
        if not table["lesion"].isna().any():
            counts[split]["lesions"] = {lesion: int((part["lesion"] == lesion).sum()) for lesion in LESIONS}
    return counts

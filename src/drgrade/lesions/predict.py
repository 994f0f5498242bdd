"""Find lesions in photographs: ``drgrade lesions``.

An interrupted search resumes: photographs are processed in parts of :data:`PART`, which are saved next to the
output and combined into the final table once all exist. Several jobs can share a search, see
:func:`detect_lesions`.
"""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.data.registry import raw_root
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.lesions.found import PARTS
from drgrade.lesions.tile_detector import TileDetector
from drgrade.lesions.tile_search import search_tiles
from drgrade.lesions.tiles import Tiling
from drgrade.params import LesionBoxes, Lesions
from drgrade.parts import SINGLE_JOB, parts_folder, share
from drgrade.schema import CROPS, INDEX, LESION_BOXES, read_table, takes_part, write_table

log = logging.getLogger(__name__)

PART = 50
"""Photographs per part. A batch of tiles never spans two parts, so a resumed search has the same batches."""
SEARCHED = {"image_id": "string", "status": "string", "reason": "string", "lesions": "Int64"}
"""Columns of ``searched.parquet``: one row per photograph, status ok or unreadable, number of lesions."""
MODEL_FILES = {"config.py", "model.pth", "segmentation.json", "model.safetensors"}
"""Files of a detector and of a segmentation network; with other ones, a search starts anew."""
Search = Callable[[pd.DataFrame, Path], pd.DataFrame]
"""Finds the lesions of some photographs: rows (image_id, path, crop box) and root to a table of PARTS."""


def searchable(index: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of the index rows to search: photographs for grading or with lesion masks."""
    return index["subset"].isin(["grading", "segmentation"])


def searcher(model: Path, boxes: LesionBoxes, params: Lesions) -> Search:
    """The search by ``params.source`` with a trained model; see :func:`detect_lesions`."""
    if params.source == "detector":
        tiling = Tiling(boxes.tile, boxes.overlap, boxes.scale)
        return partial(search_tiles, TileDetector(model, params.min_score), tiling, params)
    from drgrade.device import device
    from drgrade.memory import keep_memory
    from drgrade.segmentation.marks import search_marks
    from drgrade.segmentation.network import SegmentationNetwork

    keep_memory()
    return partial(search_marks, SegmentationNetwork.load(model, device()), boxes, params)


def detect_lesions(
    dataset: str,
    index: Path,
    crops: Path,
    model: Path,
    boxes: LesionBoxes,
    params: Lesions,
    out: Path,
    shard: tuple[int, int] = SINGLE_JOB,
    select: Callable[[pd.DataFrame], Any] = searchable,
) -> None:
    """Find lesions in all usable photographs; write ``lesions.parquet`` in original pixels.

    Usable are photographs that ``select`` picks and whose status is ok in the index and in ``crops.parquet``.
    Photographs without a lesion have no row in it. ``searched.parquet`` next to ``out`` has a row for each
    photograph, including unreadable ones with the reason.

    To share a search among n GPUs, run n jobs with ``shard=(0, n)`` to ``(n - 1, n)`` and the same ``out`` on
    a shared disk, each with its own ``CUDA_VISIBLE_DEVICES``; they write parts. A final call without
    ``shard`` completes missing parts and writes the tables. On machines of one kind the result does not
    depend on how the work was shared.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``; only the crop box is searched.
        model: folder of the trained detector, or of the segmentation network: what ``params.source`` names.
        boxes: how the detector's training tiles were cut; the same tiling is used. Marks of the segmentation
            are enlarged to its ``min_side``.
        params: what finds the lesions, and which are kept.
        out: the table to write, sorted by image_id, then by falling score.
        shard: number of this job (from 0) and number of jobs; (0, 1) is a single job.
        select: returns a mask of the index rows to search; default: photographs for grading or with masks.

    Raises:
        UserError: the shard number is out of range, or none of the photographs can be read.
    """
    root = raw_root(dataset)
    rows = _usable(index, crops, select)
    search = searcher(model, boxes, params)
    said = [
        str(root),
        boxes.model_dump_json(),
        params.model_dump_json(),
        str(PART),
        ",".join(rows["image_id"]),
    ]
    files = [index, crops, *sorted(file for file in model.iterdir() if file.name in MODEL_FILES)]
    folder = parts_folder(out, [*said, *map(sha256, files)])
    starts = range(0, len(rows), PART)
    parts = [folder / f"{start:07d}.parquet" for start in starts]
    for start, part in share(list(zip(starts, parts, strict=True)), shard):
        if not part.exists():
            write_table(search(rows[start : start + PART], root), part, PARTS)
            log.info(
                "photographs %d to %d of %d searched", start + 1, min(start + PART, len(rows)), len(rows)
            )
    if shard == SINGLE_JOB:
        _collect(parts, rows, root, out)
        shutil.rmtree(folder.parent)


def _usable(index: Path, crops: Path, select: Callable[[pd.DataFrame], Any]) -> pd.DataFrame:
    """Return image_id, path and crop box of the photographs to search, sorted by image_id."""
    table = read_table(index, INDEX)
    table = table[select(table) & takes_part(table)]
    boxes = read_table(crops, CROPS)
    boxes = boxes.loc[boxes["status"] == "ok", ["image_id", "x0", "y0", "x1", "y1"]]
    return table[["image_id", "path"]].merge(boxes, on="image_id").sort_values("image_id", ignore_index=True)


def _collect(parts: list[Path], rows: pd.DataFrame, root: Path, out: Path) -> None:
    """Combine all parts and write ``searched.parquet`` and the table of lesions."""
    empty = pd.DataFrame(columns=list(PARTS)).astype(PARTS)
    table = pd.concat([empty, *(read_table(part, PARTS) for part in parts)])
    reasons = table[table["reason"].notna()].set_index("image_id")["reason"]
    if len(reasons) and len(reasons) == len(rows):
        shutil.rmtree(parts[0].parent)  # so that the next run tries to read them again
        raise UserError(
            f"{root / rows['path'].iloc[0]}: {reasons.iloc[0]}, and the other {len(rows) - 1} photographs "
            f"cannot be read either; put them where the index found them"
        )
    table = table[table["reason"].isna()].sort_values(
        ["image_id", "score"], ascending=[True, False], kind="stable"
    )
    searched = rows[["image_id"]].assign(
        status=np.where(rows["image_id"].isin(reasons.index), "unreadable", "ok"),
        reason=rows["image_id"].map(reasons),
        lesions=rows["image_id"].map(table["image_id"].value_counts()).fillna(0),
    )
    write_table(searched, out.with_name("searched.parquet"), SEARCHED)
    write_table(table[list(LESION_BOXES)], out, LESION_BOXES)
    log.info("%d photographs searched, %d lesions found", len(rows) - len(reasons), len(table))

"""Detect lesions on photographs with a trained detector: ``drgrade lesions``.

An interrupted search resumes: photographs are processed in parts of :data:`PART`, which are saved next to the
output and combined into the final table once all exist. Several jobs can share a search, see
:func:`detect_lesions`.
"""

import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.background import read_ahead
from drgrade.data.registry import raw_root
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.images.read import ReadError, read_photograph
from drgrade.lesions.tile_detector import Found, TileDetector
from drgrade.lesions.tiles import Tile, Tiling
from drgrade.params import LesionBoxes, Lesions
from drgrade.parts import SINGLE_JOB, parts_folder, share
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table, takes_part, write_table

log = logging.getLogger(__name__)

PART = 50
"""Photographs per part. A batch of tiles never spans two parts, so a resumed search has the same batches."""
READERS = 4
"""Threads that read, tile and preprocess photographs while the detector runs."""
WHOLE = 2048
"""Side in pixels assumed for photographs that are not tiled, when the batch size for a GPU is computed."""
PARTS = LESION_BOXES | {"reason": "string"}
"""Columns of a part: detections, and for each unreadable photograph a row with a reason and no box."""
SEARCHED = {"image_id": "string", "status": "string", "reason": "string", "lesions": "Int64"}
"""Columns of ``searched.parquet``: one row per photograph, status ok or unreadable, number of lesions."""


def searchable(index: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of the index rows to search: photographs for grading or with lesion masks."""
    return index["subset"].isin(["grading", "segmentation"])


def detect_lesions(
    dataset: str,
    index: Path,
    crops: Path,
    detector: Path,
    boxes: LesionBoxes,
    params: Lesions,
    out: Path,
    shard: tuple[int, int] = SINGLE_JOB,
    select: Callable[[pd.DataFrame], Any] = searchable,
) -> None:
    """Detect lesions on all usable photographs, tile by tile; write ``lesions.parquet`` in original pixels.

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
        detector: folder of the trained detector.
        boxes: how the detector's training tiles were cut; the same tiling is used.
        params: batch size and which detections to keep.
        out: the table to write, sorted by image_id, then by falling score.
        shard: number of this job (from 0) and number of jobs; (0, 1) is a single job.
        select: returns a mask of the index rows to search; default: photographs for grading or with masks.

    Raises:
        UserError: the shard number is out of range, or none of the photographs can be read.
    """
    find = TileDetector(detector, params.min_score)
    tiling = Tiling(boxes.tile, boxes.overlap, boxes.scale)
    root = raw_root(dataset)
    rows = _usable(index, crops, select)
    said = [str(root), repr(tiling), params.model_dump_json(), str(PART), ",".join(rows["image_id"])]
    files = [index, crops, detector / "config.py", detector / "model.pth"]
    folder = parts_folder(out, [*said, *map(sha256, files)])
    starts = range(0, len(rows), PART)
    parts = [folder / f"{start:07d}.parquet" for start in starts]
    for start, part in share(list(zip(starts, parts, strict=True)), shard):
        if not part.exists():
            write_table(_search(find, rows[start : start + PART], root, tiling, params), part, PARTS)
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


def _search(
    find: TileDetector, rows: pd.DataFrame, root: Path, tiling: Tiling, params: Lesions
) -> pd.DataFrame:
    """Detect lesions on some photographs; return a part with the columns :data:`PARTS`."""
    from drgrade.inference import batch_size, run_batches

    frames = [_table("", merge([], (0, 0), params)).assign(reason=None)]
    unread: dict[str, str] = {}
    under_way: deque[_Piece] = deque()

    def batches() -> Iterator[list[Any]]:
        size = batch_size(tiling.tile or WHOLE, params.batch_size)
        cut = partial(_cut, find, root, tiling, unread)
        pieces = chain.from_iterable(
            read_ahead(cut, rows.itertuples(index=False, name=None), threads=READERS, depth=READERS)
        )
        while batch := list(islice(pieces, size)):
            under_way.extend(batch)
            yield [piece.sample for piece in batch]

    waiting: dict[str, tuple[int, list[Found]]] = {}
    for found in chain.from_iterable(run_batches(find.detect, batches())):
        piece = under_way.popleft()
        found = found[(found.scores >= params.min_score) & piece.tile.whole(found.boxes)]
        moved = Found(piece.tile.boxes_to_original(found.boxes), found.scores, found.labels)
        left, parts = waiting.pop(piece.image_id, (piece.of, []))
        parts.append(moved)
        if left > 1:
            waiting[piece.image_id] = (left - 1, parts)
        else:
            frames.append(_table(piece.image_id, merge(parts, piece.shape, params)))
    frames.append(pd.DataFrame({"image_id": unread.keys(), "reason": unread.values()}))
    return pd.concat(frames)


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


def merge(parts: list[Found], shape: tuple[int, ...], params: Lesions) -> Found:
    """Merge the detections on a photograph's tiles: clip them to (H, W) and remove duplicates by NMS.

    Of boxes of one kind with an IoU above ``params.nms_iou`` only the best is kept; at most
    ``params.max_per_image`` detections are returned, best first.
    """
    import torch
    from torchvision.ops import batched_nms

    empty = Found(np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int64))
    parts = [empty, *parts]
    boxes = np.concatenate([part.boxes for part in parts])
    boxes = np.clip(boxes, 0, [shape[1], shape[0], shape[1], shape[0]])
    found = Found(boxes, np.concatenate([p.scores for p in parts]), np.concatenate([p.labels for p in parts]))
    found = found[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    keep = batched_nms(
        torch.from_numpy(found.boxes).float(),
        torch.from_numpy(found.scores),
        torch.from_numpy(found.labels),
        params.nms_iou,
    )
    return found[keep[: params.max_per_image].numpy()]


@dataclass(frozen=True)
class _Piece:
    """A tile with its preprocessed detector input and its photograph's image_id."""

    image_id: str
    tile: Tile
    sample: Any
    shape: tuple[int, ...]  # (H, W, 3) of the photograph
    of: int  # number of tiles of the photograph


def _cut(
    find: TileDetector, root: Path, tiling: Tiling, unread: dict[str, str], row: tuple[Any, ...]
) -> list[_Piece]:
    """Return a photograph's tiles inside the field of view; if unreadable, none, and add it to ``unread``."""
    image_id, path, *edges = row
    try:
        image = read_photograph(root / path)
    except ReadError as error:
        log.warning("%s: skipped, %s", image_id, error)
        unread[image_id] = str(error)
        return []
    x0, y0, x1, y1 = map(int, edges)
    tiles = [tile for tile in tiling.cut(image, (x0, y0, x1, y1)) if not tile.outside]
    return [_Piece(image_id, tile, find.prepare(tile.pixels), image.shape, len(tiles)) for tile in tiles]


def _table(image_id: str, found: Found) -> pd.DataFrame:
    table = pd.DataFrame(found.boxes, columns=["x1", "y1", "x2", "y2"])
    lesions = [LESIONS[label] for label in found.labels]
    return table.assign(image_id=image_id, score=found.scores, lesion=lesions)

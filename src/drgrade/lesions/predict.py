"""Search photographs for lesions with a trained detector: ``drgrade lesions``.

A search that was killed goes on with the part it was in: parts of :data:`PART` photographs wait beside the
output, and the last of them is turned into the table. Several jobs can share a search, see
:func:`detect_lesions`.
"""

import hashlib
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
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table, write_table

log = logging.getLogger(__name__)

PART = 50
"""Photographs of a part. A batch of tiles never spans two parts: a resumed search sees the same batches."""
READERS = 4
"""Threads that read, cut and prepare a photograph each while the detector runs."""
WHOLE = 2048
"""Side in pixels that a photograph which is not cut counts as, when batches are sized for a GPU."""
PARTS = LESION_BOXES | {"reason": "string"}
"""A part: detections, and a row with a reason and no box for each photograph that cannot be read."""
SEARCHED = {"image_id": "string", "status": "string", "reason": "string", "lesions": "Int64"}
"""``searched.parquet``: each photograph, ok or unreadable, and how many lesions were found."""


def searchable(index: pd.DataFrame) -> "pd.Series[bool]":
    """Photographs for grading or with masks."""
    return index["subset"].isin(["grading", "segmentation"])


def detect_lesions(
    dataset: str,
    index: Path,
    crops: Path,
    detector: Path,
    boxes: LesionBoxes,
    params: Lesions,
    out: Path,
    shard: tuple[int, int] = (0, 1),
    select: Callable[[pd.DataFrame], Any] = searchable,
) -> None:
    """Search every usable photograph, tile by tile, and write ``lesions.parquet`` in original pixels.

    Usable are photographs that ``select`` picks and whose status is ok in the index and in ``crops.parquet``.
    One without a lesion has no row. ``searched.parquet`` beside ``out`` has a row for each photograph, also
    for one that cannot be read, with the reason.

    Several jobs, one a GPU, share a search by ``shard=(0, n)`` to ``(n - 1, n)`` with the same ``out`` on a
    shared disk, each with its own ``CUDA_VISIBLE_DEVICES``; they leave parts. A last call without ``shard``
    does what is missing and writes the tables, the same on one kind of machine however the work was shared.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``; only the crop box is searched.
        detector: folder of the trained detector.
        boxes: how the detector's training tiles were cut; the same cut is searched.
        params: batch size and what to keep.
        out: the table to write, sorted by image_id, then by falling score.
        shard: number of this job and how many there are; (0, 1) is all.
        select: which rows of the index to search; those for grading or with masks unless told otherwise.

    Raises:
        UserError: no such shard, or not one photograph can be read.
    """
    number, of = shard
    if not 0 <= number < of:
        raise UserError(f"shard {number} of {of}: shards count from 0; give one from 0 to {max(of - 1, 0)}")
    find = TileDetector(detector, params.min_score)
    tiling = Tiling(boxes.tile, boxes.overlap, boxes.scale)
    root = raw_root(dataset)
    rows = _usable(index, crops, select)
    said = [str(root), repr(tiling), params.model_dump_json(), str(PART), ",".join(rows["image_id"])]
    folder = _parts_folder(out, said, [index, crops, detector / "config.py", detector / "model.pth"])
    starts = range(0, len(rows), PART)
    parts = [folder / f"{start:07d}.parquet" for start in starts]
    for start, part in list(zip(starts, parts, strict=True))[number::of]:
        if not part.exists():
            write_table(_search(find, rows[start : start + PART], root, tiling, params), part, PARTS)
            log.info(
                "photographs %d to %d of %d searched", start + 1, min(start + PART, len(rows)), len(rows)
            )
    if shard == (0, 1):
        _collect(parts, rows, root, out)
        shutil.rmtree(folder.parent)


def _usable(index: Path, crops: Path, select: Callable[[pd.DataFrame], Any]) -> pd.DataFrame:
    """Image_id, path and crop box of the photographs to search, by image_id."""
    table = read_table(index, INDEX)
    table = table[select(table) & (table["status"] == "ok")]
    boxes = read_table(crops, CROPS)
    boxes = boxes.loc[boxes["status"] == "ok", ["image_id", "x0", "y0", "x1", "y1"]]
    return table[["image_id", "path"]].merge(boxes, on="image_id").sort_values("image_id", ignore_index=True)


def _parts_folder(out: Path, said: list[str], files: list[Path]) -> Path:
    """Folder of an unfinished search's parts; parts of a search with other params or files are deleted."""
    text = "\n".join([*said, *map(sha256, files)])
    folder = out.with_name(f".{out.name}.parts") / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _search(
    find: TileDetector, rows: pd.DataFrame, root: Path, tiling: Tiling, params: Lesions
) -> pd.DataFrame:
    """The part (:data:`PARTS`) of some photographs."""
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
    """Write the tables from all parts."""
    empty = pd.DataFrame(columns=list(PARTS)).astype(PARTS)
    table = pd.concat([empty, *(read_table(part, PARTS) for part in parts)])
    reasons = table[table["reason"].notna()].set_index("image_id")["reason"]
    if len(reasons) and len(reasons) == len(rows):
        shutil.rmtree(parts[0].parent)  # they are read again when the disk is back
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
    """One photograph's detections from those of its tiles: clipped to (H, W), one for each lesion.

    Boxes of one kind that overlap by more than ``params.nms_iou`` are one lesion seen twice; at most
    ``params.max_per_image`` are kept, best first.
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
    """A tile, prepared for the detector, and the photograph it is of."""

    image_id: str
    tile: Tile
    sample: Any
    shape: tuple[int, ...]  # of the photograph
    of: int  # tiles of the photograph


def _cut(
    find: TileDetector, root: Path, tiling: Tiling, unread: dict[str, str], row: tuple[Any, ...]
) -> list[_Piece]:
    """Tiles of a photograph with anything on them; none, and why in ``unread``, where it cannot be read."""
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

"""Lesion masks in crop space: one byte per pixel, one bit per kind of lesion, in one memory-mapped array.

``drgrade lesion_masks`` writes ``masks.npy``, uint8 (N, S, S), and ``masks.parquet``, whose rows give the
photograph of each mask and the kinds of lesion that were annotated in it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.images.geometry import CropGeometry
from drgrade.images.workers import in_order
from drgrade.lesions.masks import read_mask
from drgrade.params import LesionMasks
from drgrade.schema import CROPS, INDEX, LESIONS, MASKS, read_table, write_table

log = logging.getLogger(__name__)

BITS = {lesion: 1 << place for place, lesion in enumerate(LESIONS)}
"""Bit of each kind of lesion in a pixel: MA 1, HE 2, EX 4, SE 8."""
ARRAY, TABLE = "masks.npy", "masks.parquet"
CHUNK = 8
"""Photographs per task of a worker process."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Masks:
    """Masks of n photographs.

    Attributes:
        array: masks of all photographs that have one, uint8 (N, S, S).
        rows: rows of the n photographs in ``array``, int64 (n,).
        annotated: bits of the kinds annotated in each photograph, uint8 (n,). If a bit is not set, it is
            unknown whether the photograph has such lesions.
    """

    array: Bytes
    rows: npt.NDArray[np.int64]
    annotated: Bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> Bytes:
        """Return the masks of some photographs, uint8 (m, S, S), or of one, (S, S); see :data:`BITS`."""
        return np.asarray(self.array[self.rows[places]])


def open_masks(folder: Path, image_ids: Sequence[str]) -> Masks:
    """Open the masks of ``image_ids`` in a folder written by :func:`write_masks`.

    Raises:
        UserError: a file is missing or damaged, or a photograph has no mask.
    """
    table = read_table(folder / TABLE, MASKS).query("status == 'ok'").set_index("image_id")
    lacking = sorted(set(image_ids) - set(table.index))
    if lacking:
        raise UserError(f"{folder / TABLE}: no mask of {lacking[0]}; run the stage lesion_masks again")
    try:
        array = np.load(folder / ARRAY, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ARRAY}: {error}; run the stage lesion_masks again") from None
    chosen = table.loc[list(image_ids)]
    return Masks(array, chosen["row"].to_numpy(np.int64), chosen["annotated"].to_numpy(np.uint8))


def with_masks(dataset: str, index: Path, crops: Path, params: LesionMasks) -> pd.DataFrame:
    """Return cropped photographs with masks: image_id, crop box, width, height and mask ``files`` by kind."""
    table = read_table(index, INDEX).query("status == 'ok'")[["image_id", "width", "height"]]
    cut = read_table(crops, CROPS).query("status == 'ok'")[["image_id", "x0", "y0", "x1", "y1"]]
    table = table.merge(cut, on="image_id").sort_values("image_id", ignore_index=True)
    masks, root = DATASETS.get(dataset)().masks, raw_root(dataset)
    found = [
        {kind: path for kind, path in masks(root, image_id).items() if kind in params.kinds}
        for image_id in table["image_id"]
    ]
    table["files"] = pd.Series(found, dtype=object)
    return table[table["files"].map(bool)].reset_index(drop=True)


def write_masks(
    dataset: str, index: Path, crops: Path, size: int, params: LesionMasks, out: Path, workers: int
) -> None:
    """Transform the masks of a dataset to crop space; an unreadable mask becomes a failed row with a reason.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        size: side S of the crops in pixels.
        params: which kinds to read.
        out: folder to write: ``masks.npy`` and ``masks.parquet``.
        workers: processes; the result does not depend on their number.

    Raises:
        UserError: no photograph of the dataset has a mask that can be read.
    """
    table = with_masks(dataset, index, crops, params)
    if table.empty:
        raise UserError(
            f"roles.lesions: {dataset!r} has no photographs with masks of {', '.join(params.kinds)}; "
            "choose a dataset that has, or graders that need none"
        )
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(table), size, size)}
    rows: list[tuple[int, str]] = []
    with atomic_write(out / ARRAY) as partial_file, partial_file.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        records = table.to_dict("records")
        chunks = [records[start : start + CHUNK] for start in range(0, len(records), CHUNK)]
        for made in in_order(partial(_in_crop_space, size), chunks, workers):
            for mask, annotated, reason in made:
                file.write(mask.tobytes())
                rows.append((annotated, reason))
    done = pd.DataFrame(rows, columns=["annotated", "reason"])
    table = table[["image_id"]].join(done).assign(row=range(len(table)))
    table["status"] = np.where(table["reason"] == "", "ok", "failed")
    for row in table[table["status"] == "failed"].itertuples():
        log.warning("%s: no masks, %s", row.image_id, row.reason)
    if (table["status"] == "failed").all():
        raise UserError(f"{table['reason'][0]}, and the masks of the other {len(table) - 1} are no better")
    write_table(table, out / TABLE, MASKS)
    log.info("masks of %d photographs", (table["status"] == "ok").sum())


def _in_crop_space(size: int, photographs: Sequence[Mapping[str, Any]]) -> list[tuple[Bytes, int, str]]:
    """Return the mask (S, S), the annotated kinds as bits, and the error (or "") of each photograph."""
    return [_one(size, photograph) for photograph in photographs]


def _one(size: int, photograph: Mapping[str, Any]) -> tuple[Bytes, int, str]:
    geometry = CropGeometry.from_row(photograph, size)
    found = np.zeros((size, size), np.uint8)
    shape = (int(photograph["height"]), int(photograph["width"]))
    for kind, path in photograph["files"].items():
        try:
            mask = read_mask(path)
        except UserError as error:
            return np.zeros_like(found), 0, str(error)
        if mask.shape != shape:
            return np.zeros_like(found), 0, f"{path}: {mask.shape[::-1]} px, the photograph has {shape[::-1]}"
        found |= np.where(geometry.mask_to_crop(mask), np.uint8(BITS[kind]), np.uint8(0))
    return found, sum(BITS[kind] for kind in photograph["files"]), ""

"""The stage ``crop``: crop all photographs of an index; unreadable ones get a row with a reason."""

import logging
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade import params, schema
from drgrade.errors import UserError
from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError
from drgrade.images.shards import SHARD_BYTES, encode, shard_path, shard_rows, write_raw, writing
from drgrade.images.workers import in_order

log = logging.getLogger(__name__)

READABLE = ["ok", "unlabelled", "filtered"]
"""Status of index rows that are cropped; filtered photographs are shown in the report."""
CHUNK = 8
"""Photographs per task of a worker."""


class Chunk(NamedTuple):
    """Photographs of one task: neighbouring rows of one shard."""

    shard: int
    first: int
    """Row of the first photograph in the shard."""
    paths: list[str]


class Plan(NamedTuple):
    """Photographs to crop, their shards, and the tasks of the workers."""

    readable: npt.NDArray[np.bool_]
    """Rows of the index to crop; the k-th of them is row k of the store."""
    shards: list[int]
    """Number of rows of each shard."""
    chunks: list[Chunk]


class Cropped(NamedTuple):
    """Result for one photograph: columns of ``crops.parquet``."""

    x0: int | None = None
    y0: int | None = None
    x1: int | None = None
    y1: int | None = None
    scale: float | None = None
    rule: str = ""
    status: str = "failed"
    reason: str = ""


def plan(rows: pd.DataFrame, root: Path, options: params.Crop, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Plan the position in the store of each photograph of an index, and the tasks of the workers.

    Args:
        rows: ``index.parquet``: status and path are used.
        root: raw folder; paths are relative to it.
        options: size and format determine the number of crops per shard.
        shard_bytes: approximate size of a shard in bytes.
    """
    readable = rows["status"].isin(READABLE).to_numpy(dtype=bool)
    paths = (f"{root}/" + rows["path"][readable]).tolist()
    shards = shard_rows(len(paths), options.size, options.format, shard_bytes)
    remaining = iter(paths)
    chunks = []
    for shard, held in enumerate(shards):
        for first in range(0, held, CHUNK):
            chunks.append(Chunk(shard, first, list(islice(remaining, min(CHUNK, held - first)))))
    return Plan(readable, shards, chunks)


def crop_dataset(
    dataset: str,
    index: Path,
    params: params.Crop,
    store: Path,
    table: Path,
    workers: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Crop every photograph of an index.

    Args:
        dataset: name of the dataset; paths in the index are relative to its raw folder.
        index: ``index.parquet``.
        params: rule, size, aspect and format of the crops.
        store: output file ``store.json``, with the folder ``store`` beside it: one image for each readable
            photograph of the index, in order; black and without a row in the table if cropping fails.
        table: output file ``crops.parquet``, one row for each row of the index.
        workers: number of processes; the output does not depend on it.
        shard_bytes: approximate size of a shard in bytes.

    Raises:
        UserError: more than ``max_failed_fraction`` of the photographs cannot be read (labels without a
            photograph do not count), there are none, or the disk is full.
    """
    from drgrade.data.registry import raw_root  # avoids a circular import: data imports images

    rows = schema.read_table(index, schema.INDEX)
    root = raw_root(dataset)
    planned = plan(rows, root, params, shard_bytes)
    if not planned.chunks:
        raise UserError(f"{index}: lists no readable photograph; is {dataset} downloaded to {root}?")
    with writing(store, planned.shards, params.size, params.format, params.quality) as writer:
        done: list[Cropped] = []
        work = partial(_crop_chunk, writer.folder, params)
        for chunk, (cropped, pictures) in zip(
            planned.chunks, in_order(work, planned.chunks, workers), strict=True
        ):
            if pictures:
                writer.add(chunk.shard, pictures)
            done += cropped
            if len(done) % 5000 < len(cropped):
                log.info("%d of %d photographs", len(done), sum(planned.shards))
        crops = _table(rows, planned.readable, done)
        _stop_if_too_many_failed(crops[rows["status"] != "missing"], params.max_failed_fraction)
    schema.write_table(crops, table, schema.CROPS)
    log.info("cropped %d of %d: %s", crops["row"].notna().sum(), len(crops), _tally(crops["rule"]))


def _crop_chunk(folder: Path, options: params.Crop, chunk: Chunk) -> tuple[list[Cropped], list[bytes]]:
    """Crop some photographs; raw pixels are written to their shard, encoded images are returned."""
    cropped, pictures = [], []
    for path in chunk.paths:
        try:
            crop, geometry, rule = crop_photograph(Path(path), options)
        except ReadError as error:
            cropped.append(Cropped(reason=str(error)))
            pictures.append(b"")
        else:
            cropped.append(Cropped(*geometry.box, geometry.scale, rule, "ok", ""))
            pictures.append(encode(crop, options.format, options.quality))
    if options.format == "raw":
        write_raw(shard_path(folder, chunk.shard, "raw"), chunk.first, pictures)
        pictures = []
    return cropped, pictures


def _table(rows: pd.DataFrame, readable: npt.NDArray[np.bool_], cropped: list[Cropped]) -> pd.DataFrame:
    """Build ``crops.parquet``: the results in the order of the index, one row for each of its rows."""
    table = pd.DataFrame(cropped, columns=Cropped._fields, index=rows.index[readable])
    table["row"] = pd.array(range(len(table)), "Int64")
    table.loc[table["status"] == "failed", "row"] = pd.NA
    table = table.reindex(rows.index)
    table["image_id"] = rows["image_id"]
    table.loc[~readable, "status"] = "failed"
    table.loc[~readable, "reason"] = rows["reason"][~readable]
    return table.fillna({"rule": ""})


def _stop_if_too_many_failed(photographs: pd.DataFrame, most: float) -> None:
    failed = photographs[photographs["status"] == "failed"]
    for image_id, reason in zip(failed["image_id"], failed["reason"], strict=True):
        log.warning("%s: %s", image_id, reason)
    if len(failed) > most * len(photographs):
        first = "; ".join(f"{row.image_id}: {row.reason}" for row in failed.head(3).itertuples())
        raise UserError(
            f"crop: {len(failed)} of {len(photographs)} photographs failed, more than "
            f"crop.max_failed_fraction ({most:g}) allows ({first}); repair or remove them, or raise it"
        )


def _tally(rules: pd.Series) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in rules[rules != ""].value_counts().items())

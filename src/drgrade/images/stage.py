"""The stage ``crop``: each photograph of an index into the store; unreadable ones are rows with a reason."""

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
"""Index rows that are cropped; what a filter left out is still shown in the report."""
CHUNK = 8
"""Photographs handed to a worker at a time."""


class Chunk(NamedTuple):
    """Photographs that one worker crops: neighbours in one shard."""

    shard: int
    first: int
    """Row in the shard of the first of them."""
    paths: list[str]


class Plan(NamedTuple):
    """Which photographs are cropped, into which shard, and in which portions of work."""

    readable: npt.NDArray[np.bool_]
    """Rows of the index to crop; the k-th of them is row k of the store."""
    shards: list[int]
    """Rows of each shard."""
    chunks: list[Chunk]


class Cropped(NamedTuple):
    """What a worker reports of a photograph: columns of ``crops.parquet``."""

    x0: int | None = None
    y0: int | None = None
    x1: int | None = None
    y1: int | None = None
    scale: float | None = None
    rule: str = ""
    status: str = "failed"
    reason: str = ""


def plan(rows: pd.DataFrame, root: Path, options: params.Crop, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Crop planning: the place in the store of each photograph of an index, and who crops it.

    Args:
        rows: ``index.parquet``: status and path are used.
        root: raw folder the paths start from.
        options: size and format decide how many crops a shard holds.
        shard_bytes: about the size of a shard.
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
        dataset: names the raw folder the index's paths start from.
        index: ``index.parquet``.
        params: rule, size, shape and format of the crops.
        store: written: ``store.json``, and the folder ``store`` beside it: a row for each photograph the
            index could read, in its order; that of one which fails here is black and belongs to no row.
        table: written: ``crops.parquet``, a row for each row of the index.
        workers: processes; the output does not depend on their number.
        shard_bytes: about the size of a file of the store.

    Raises:
        UserError: more than ``max_failed_fraction`` of the photographs cannot be read (labels without a
            photograph do not count), there are none, or the disk is full.
    """
    from drgrade.data.registry import raw_root  # data builds on images, so images only asks it here

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
    """Crop some photographs; raw pixels go straight into their shard, encoded images are handed back."""
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
    """``crops.parquet``: what was cropped in its place among the rows of the index."""
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

"""The stage ``crop``: crop all photographs of an index; unreadable ones get a row with a reason."""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade import params, schema
from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.images.crop_parts import CropParts, Part, crop_part
from drgrade.images.shards import SHARD_BYTES, shard_rows
from drgrade.images.workers import in_order
from drgrade.parts import SINGLE_JOB, parts_folder, share
from drgrade.sources import software

log = logging.getLogger(__name__)

READABLE = ["ok", "unlabelled", "filtered"]
"""Status of index rows that are cropped; filtered photographs are shown in the report."""
PART = 16
"""Photographs of a part: one task of a worker, one file of partial results."""


class Plan(NamedTuple):
    """Photographs to crop, the shards of the store, and the parts of the work."""

    readable: npt.NDArray[np.bool_]
    """Rows of the index to crop; the k-th of them is row k of the store."""
    shards: list[int]
    """Number of rows of each shard."""
    parts: list[Part]


def plan(rows: pd.DataFrame, root: Path, options: params.Crop, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Plan the position in the store of each photograph of an index, and the parts of the work.

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
    parts = []
    for shard, held in enumerate(shards):
        for first in range(0, held, PART):
            parts.append(Part(shard, first, list(islice(remaining, min(PART, held - first)))))
    return Plan(readable, shards, parts)


def crop_dataset(
    dataset: str,
    index: Path,
    params: params.Crop,
    store: Path,
    table: Path,
    workers: int,
    shard: tuple[int, int] = SINGLE_JOB,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Crop every photograph of an index.

    A killed run resumes. To share the work among n jobs, run n jobs with ``shard=(0, n)`` to ``(n - 1, n)``
    and the same outputs on a shared disk; they write parts. A final call without ``shard`` crops what is
    missing and writes the outputs, which do not depend on how the work was shared.

    Args:
        dataset: name of the dataset; paths in the index are relative to its raw folder.
        index: ``index.parquet``.
        params: rule, size, aspect and format of the crops.
        store: output file ``store.json``, with the folder ``store`` beside it: one image for each readable
            photograph of the index, in order; black and without a row in the table if cropping fails.
        table: output file ``crops.parquet``, one row for each row of the index.
        workers: number of processes; the output does not depend on it.
        shard: number of this job (from 0) and number of jobs; (0, 1) is a single job.
        shard_bytes: approximate size of a shard of the store in bytes.

    Raises:
        UserError: more than ``max_failed_fraction`` of the photographs cannot be read (labels without a
            photograph do not count), there are none, the crops do not fit on the disk, or there is no such
            shard.
    """
    from drgrade.data.registry import raw_root  # avoids a circular import: data imports images

    rows = schema.read_table(index, schema.INDEX)
    root = raw_root(dataset)
    planned = plan(rows, root, params, shard_bytes)
    if not planned.parts:
        raise UserError(f"{index}: lists no readable photograph; is {dataset} downloaded to {root}?")
    drawn_by = params.model_dump_json(exclude={"max_failed_fraction"})
    made_of = [str(root), sha256(index), drawn_by, str(planned.shards), software("crop")]
    folder = parts_folder(store, made_of)
    parts = CropParts(folder, planned.shards, planned.parts, params)
    _crop_missing(parts, planned.parts, shard, workers)
    if shard != SINGLE_JOB:
        log.info("part %d of %d is cropped", shard[0] + 1, shard[1])
        return
    crops = _table(rows, planned.readable, parts.results())
    try:
        _stop_if_too_many_failed(crops[rows["status"] != "missing"], params.max_failed_fraction)
    except UserError:
        parts.forget_failures()
        raise
    parts.join()
    parts.finish(store)
    schema.write_table(crops, table, schema.CROPS)
    shutil.rmtree(folder.parent)
    log.info("cropped %d of %d: %s", crops["row"].notna().sum(), len(crops), _tally(crops["rule"]))


def _crop_missing(parts: CropParts, planned: Sequence[Part], shard: tuple[int, int], workers: int) -> None:
    """Crop this job's share of the parts that no earlier run has left."""
    missing = [part for part in share(planned, shard) if not parts.exists(part)]
    _check_space(parts.folder, sum(len(part.paths) for part in missing), parts.options)
    total = sum(len(part.paths) for part in planned)
    work = partial(crop_part, parts.folder, parts.options)
    done = 0
    for part, _ in zip(missing, in_order(work, missing, workers), strict=True):
        done += len(part.paths)
        if done % 5000 < len(part.paths):
            log.info("%d photographs cropped, of %d in all jobs", done, total)


def _check_space(folder: Path, count: int, options: params.Crop) -> None:
    """Stop if ``count`` images will not fit on the disk; only of raw ones is the size known."""
    needed, free = count * options.size**2 * 3, shutil.disk_usage(folder).free
    if options.format == "raw" and needed > free:
        raise UserError(
            f"{folder.parent.parent}: the crops need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; make room, or set crop.format to jpeg, which needs about a tenth"
        )


def _table(rows: pd.DataFrame, readable: npt.NDArray[np.bool_], results: pd.DataFrame) -> pd.DataFrame:
    """Build ``crops.parquet``: the results in the order of the index, one row for each of its rows."""
    table = results.set_index(rows.index[readable])
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

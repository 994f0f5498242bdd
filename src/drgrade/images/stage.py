"""The stage ``crop``: each photograph of an index into the store; unreadable ones are rows with a reason."""

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade import params, schema
from drgrade.errors import UserError
from drgrade.files import whole
from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError

log = logging.getLogger(__name__)


class _Cropped(NamedTuple):
    """What a worker reports: columns of ``crops.parquet``."""

    x0: int | None = None
    y0: int | None = None
    x1: int | None = None
    y1: int | None = None
    scale: float | None = None
    rule: str = ""
    status: str = "failed"
    reason: str = ""


def _crop_into(store: Path, options: params.Crop, task: tuple[int, Path]) -> _Cropped:
    """Crop one photograph into its slot of the store."""
    slot, path = task
    try:
        crop, geometry, rule = crop_photograph(path, options)
    except ReadError as error:
        return _Cropped(reason=str(error))
    np.lib.format.open_memmap(store, mode="r+")[slot] = crop
    return _Cropped(*geometry.box, geometry.scale, rule, "ok", "")


def crop_dataset(
    dataset: str, index: Path, params: params.Crop, store: Path, table: Path, workers: int
) -> None:
    """Crop every photograph of an index.

    Args:
        dataset: names the raw folder the index's paths start from.
        index: ``index.parquet``.
        params: rule, size and shape of the crops.
        store: written: ``crops.npy``, uint8 RGB (n, size, size, 3), a slot for each photograph the index
            could read, in its order; the slot of one that fails here stays black and belongs to no row.
        table: written: ``crops.parquet``, a row for each row of the index.
        workers: processes; the output does not depend on their number.

    Raises:
        UserError: more than ``max_failed_fraction`` of the photographs cannot be read (labels without a
            photograph do not count), or there are none.
    """
    from drgrade.data.registry import raw_root  # data builds on images, so images only asks it here

    rows = schema.read_table(index, schema.INDEX)
    readable = rows["status"].isin(["ok", "unlabelled"]).to_numpy(dtype=bool)
    root = raw_root(dataset)
    tasks = list(enumerate(root / path for path in rows.loc[readable, "path"]))
    if not tasks:
        raise UserError(f"{index}: lists no readable photograph; is {dataset} downloaded to {root}?")
    with whole(store) as unfinished:
        _blank_store(unfinished, len(tasks), params.size)
        done = iter(enumerate(_crop_all(tasks, partial(_crop_into, unfinished, params), workers)))
        records = []
        for ok, image_id, reason in zip(readable, rows["image_id"], rows["reason"], strict=True):
            slot, cropped = next(done) if ok else (None, _Cropped(reason=reason))
            failed = cropped.status == "failed"
            records.append({"image_id": image_id, "row": None if failed else slot} | cropped._asdict())
        crops = pd.DataFrame(records)
        _stop_if_too_many_failed(crops[rows["status"] != "missing"], params.max_failed_fraction)
    schema.write_table(crops, table, schema.CROPS)
    log.info("cropped %d of %d: %s", crops["row"].notna().sum(), len(crops), _tally(crops["rule"]))


def _blank_store(path: Path, count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))


def _crop_all(tasks: list[tuple[int, Path]], crop: "partial[_Cropped]", workers: int) -> list[_Cropped]:
    if min(workers, len(tasks)) <= 1:
        return [crop(task) for task in tasks]
    context = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads half alive
    try:
        with ProcessPoolExecutor(min(workers, len(tasks)), context, cv2.setNumThreads, (1,)) as pool:
            return list(pool.map(crop, tasks, chunksize=4))
    except BrokenProcessPool:
        raise UserError("crop: a worker died, most likely out of memory; run it with fewer workers") from None


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

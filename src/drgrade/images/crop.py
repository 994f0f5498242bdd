"""Photographs to square crops: read whatever a camera or an archive holds, find the eye, cut, store.

A photograph that cannot be read is a row with a reason. JPEGs are decoded at a half, quarter or eighth of
their resolution where the crop needs no more, so the full-size picture never exists.
"""

import io
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
from PIL import Image, ImageOps, UnidentifiedImageError

from drgrade import params, schema
from drgrade.errors import UserError
from drgrade.files import whole
from drgrade.images.geometry import CropGeometry
from drgrade.images.rules import Box, Picture, find_box

__all__ = ["ReadError", "crop_dataset", "crop_photograph", "cut", "find_box", "read_photograph"]

log = logging.getLogger(__name__)

ORIENTATION = 0x0112  # EXIF tag
MOST_PIXELS = 64_000_000
LONGEST = 4
"""Larger or longer (longer by shorter side) pictures are not of an eye; damaged headers make such claims."""
SMALLEST_EYE = 0.8
"""A photograph's eye is expected to be at least this share of its shorter side; else it is decoded again."""


class ReadError(Exception):
    """A photograph cannot be read; the message is the reason, fit for a table."""


def read_photograph(path: Path) -> Picture:
    """Decode a photograph of any mode: grey, palette, alpha (over black), CMYK, 16 bit; EXIF-turned upright.

    Returns:
        uint8 RGB (H, W, 3) at full resolution.

    Raises:
        ReadError: no such file, empty, not an image, cut short, or of a size or shape no camera makes.
    """
    return _read(path, None)[0]


def _read(path: Path, side: float | None) -> tuple[Picture, int]:
    """Decode at 1/factor of the resolution, as small as ``side`` allows for the shorter side; None: full."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReadError((error.strerror or type(error).__name__).lower()) from None
    if not data:
        raise ReadError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                raise ReadError("truncated JPEG")  # libjpeg fills a zeroed tail with grey and says nothing
            factor = _reduce(image, side)
            width, height = image.size
            if width * height > MOST_PIXELS or max(width, height) > LONGEST * min(width, height):
                raise ReadError(f"{width}x{height} pixels are no photograph of an eye")
            image.load()
            return _upright_rgb(image), factor
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError("not an image, or cut off in its header") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        if "truncated" in str(error):
            raise ReadError("truncated image") from None
        raise ReadError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _reduce(image: Image.Image, side: float | None) -> int:
    """Ask libjpeg for the smallest scale whose shorter side is at least ``side``; returns 1, 2, 4 or 8."""
    width, height = image.size
    if side is None or _orientation(image) != 1:  # turned pictures may not start on a whole reduced pixel
        return 1
    for factor in (8, 4, 2):
        if min(width, height) / factor >= side:
            image.draft(None, (width // factor, height // factor))
            return factor if image.size == (-(-width // factor), -(-height // factor)) else 1
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not spoil the picture
        return 1


def _upright_rgb(image: Image.Image) -> Picture:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ReadError("32-bit float pixels have no agreed range; convert to 8 or 16 bit")
    if image.mode.startswith("I"):
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def cut(picture: Picture, geometry: CropGeometry) -> Picture:
    """Resample the box of a picture to the crop, (size, size, 3); black where it reaches outside.

    Args:
        picture: uint8 RGB (H, W, 3), in the pixels the box is given in.
        geometry: box and size.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = geometry.box
    inside = picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    side = geometry.size
    if not inside.size:
        return np.zeros((side, side, 3), np.uint8)
    margins = max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)
    boxed = cv2.copyMakeBorder(inside, *margins, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    # area averaging is only meant for shrinking
    method = cv2.INTER_AREA if min(boxed.shape[:2]) >= side else cv2.INTER_LINEAR
    return cv2.resize(boxed, (side, side), interpolation=method).astype(np.uint8, copy=False)


def crop_photograph(path: Path, options: params.Crop) -> tuple[Picture, CropGeometry, str]:
    """Read, find the eye and cut one photograph.

    Returns:
        The crop (size, size, 3) uint8 RGB, its place in original pixels, and the rule that found it.

    Raises:
        ReadError: the photograph cannot be read.
    """
    exact = options.rule == "o_O"
    picture, factor = _read(path, None if exact else options.size / SMALLEST_EYE)
    box, rule = find_box(picture, options.rule)
    if factor > 1 and min(box[2] - box[0], box[3] - box[1]) < options.size:
        picture, factor = read_photograph(path), 1
        box, rule = find_box(picture, options.rule)
    box = _shape(box, options.aspect, picture.shape[1], picture.shape[0])
    crop = cut(picture, CropGeometry(*box, options.size))
    x0, y0, x1, y1 = (edge * factor for edge in box)
    return crop, CropGeometry(x0, y0, x1, y1, options.size), rule


def _shape(box: Box, aspect: str, width: int, height: int) -> Box:
    """pad: grow the shorter side about the centre to a square; squash: keep to what the photograph shows."""
    x0, y0, x1, y1 = box
    if aspect == "squash":
        return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    side = max(x1 - x0, y1 - y0)
    x0 -= (side - (x1 - x0)) // 2
    y0 -= (side - (y1 - y0)) // 2
    return x0, y0, x0 + side, y0 + side


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

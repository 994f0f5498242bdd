"""Photographs with lesion masks, decoded and scaled once for a whole training.

They are kept in unnamed temporary files that are mapped into memory, because hundreds of photographs at full
resolution would not fit in it; the system keeps as many pages in memory as there is room for.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.background import read_ahead
from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.faults import naming
from drgrade.images.read import ReadError, read_photograph
from drgrade.lesions.mask_store import BITS
from drgrade.lesions.masks import read_mask
from drgrade.lesions.tiles import Tiling
from drgrade.params import Segmentation
from drgrade.schema import CROPS, INDEX, read_table

log = logging.getLogger(__name__)

FOLDER = Path(".cache/drgrade/regions")
"""Folder of the temporary files: on the disk of the results, as /tmp may be in memory."""

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """The scaled crop box of a photograph, clipped to the photograph, with its lesion masks.

    Attributes:
        image_id: of the photograph.
        pixels: uint8 RGB (h, w, 3), as :class:`drgrade.lesions.tiles.Tiling` scales it for prediction.
        masks: uint8 (h, w), a bit for each kind of lesion; see :data:`drgrade.lesions.mask_store.BITS`.
        annotated: bits of the kinds that have a mask file. Where a bit is not set, it is unknown whether the
            photograph has such lesions.
    """

    image_id: str
    pixels: Bytes
    masks: Bytes
    annotated: int


def read_regions(
    dataset: str, index: Path, crops: Path, image_ids: Sequence[str], params: Segmentation
) -> list[Region]:
    """Read photographs and their masks, on all CPU cores.

    Photographs that have no crop or no mask of ``params.kinds``, or that cannot be read, and those with a
    mask that cannot be read or has another size, are left out, and the reason is logged.

    Args:
        dataset: name of the dataset.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        image_ids: photographs to read.
        params: ``kinds`` and ``scale``.

    Returns:
        Regions in the order of ``image_ids``.

    Raises:
        UserError: none of the photographs can be used.
    """
    rows = read_table(crops, CROPS).query("status == 'ok'")[["image_id", "x0", "y0", "x1", "y1"]]
    rows = read_table(index, INDEX)[["image_id", "path"]].merge(rows, on="image_id").set_index("image_id")
    masks = mask_files(dataset, image_ids, params)
    known = rows.to_dict("index")
    tasks = [{"image_id": name, "masks": masks[name], **known.get(name, {})} for name in image_ids]
    cores = len(os.sched_getaffinity(0))
    read = partial(_read_or_reason, raw_root(dataset), params.scale)
    regions, reasons = [], {}
    for name, found in zip(image_ids, read_ahead(read, tasks, threads=cores, depth=cores + 1), strict=True):
        if isinstance(found, Region):
            regions.append(found)
        else:
            log.warning("%s: left out, %s", name, found)
            reasons[name] = found
    if not regions:
        raise UserError(
            f"{index}: none of {len(image_ids)} photographs with masks can be used"
            + "".join(f" ({name}: {reason})" for name, reason in list(reasons.items())[:1])
        )
    return regions


def mask_files(dataset: str, image_ids: Sequence[str], params: Segmentation) -> dict[str, dict[str, Path]]:
    """Mask files of ``params.kinds``, by photograph and kind."""
    source, root = DATASETS.get(dataset)(), raw_root(dataset)
    return {
        name: {kind: path for kind, path in source.masks(root, name).items() if kind in params.kinds}
        for name in image_ids
    }


def resized_mask(mask: Mask, width: int, height: int) -> Mask:
    """Resize a mask (h, w) so that no lesion vanishes.

    A pixel is set if lesions cover at least half of it, which keeps their area. Where a lesion does not cover
    half of any pixel, the pixel that it covers most is set, unless one next to it is set already.
    """
    smooth = cv2.INTER_AREA if height < mask.shape[0] else cv2.INTER_LINEAR
    covered = cv2.resize(mask.astype(np.float32), (width, height), interpolation=smooth)
    around = np.ones((3, 3), np.uint8)
    half = covered >= 0.5
    most = (covered > 0) & (covered == cv2.dilate(covered, around))
    return np.asarray(half | (most & (cv2.dilate(half.astype(np.uint8), around) == 0)))


def resized_bits(masks: Bytes, width: int, height: int) -> Bytes:
    """Resize masks (h, w) of all kinds, a bit each, like :func:`resized_mask`."""
    resized = np.zeros((height, width), np.uint8)
    for bit in BITS.values():
        own = (masks & bit) > 0
        if own.any():
            resized[resized_mask(own, width, height)] |= bit
    return resized


def _read_or_reason(root: Path, scale: float, task: Mapping[str, Any]) -> Region | str:
    """Read a photograph; return the reason if it cannot be used."""
    if "path" not in task:
        return "no crop"
    if not task["masks"]:
        return "no mask of these kinds"
    try:
        return _read(root, scale, task)
    except (ReadError, UserError) as error:
        return str(error)


def _read(root: Path, scale: float, task: Mapping[str, Any]) -> Region:
    image = read_photograph(root / task["path"])
    x0, y0, x1, y1 = (int(task[edge]) for edge in ("x0", "y0", "x1", "y1"))
    (whole,) = Tiling(None, 0.0, scale).cut(image, (x0, y0, x1, y1))
    height, width = whole.pixels.shape[:2]
    masks = np.zeros((height, width), np.uint8)
    for kind, path in task["masks"].items():
        mask = read_mask(path)
        if mask.shape != image.shape[:2]:
            raise UserError(
                f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, but the photograph has "
                f"{image.shape[1]} x {image.shape[0]}"
            )
        masks[resized_mask(mask[max(y0, 0) : y1, max(x0, 0) : x1], width, height)] |= BITS[kind]
    annotated = sum(BITS[kind] for kind in task["masks"])
    return Region(str(task["image_id"]), _kept(whole.pixels), _kept(masks), annotated)


def _kept(array: Bytes) -> Bytes:
    """A read-only copy in a file that has no name and is deleted when the process ends."""
    with naming(FOLDER):
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=FOLDER) as file:  # the mapping keeps it alive
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            return np.memmap(file, np.uint8, "r", shape=array.shape)

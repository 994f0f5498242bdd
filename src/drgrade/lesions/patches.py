"""Read, write and filter patch pickles, and read the published ones.

Format and rules of Huang et al., MICCAI 2021 (specification 6.1, 6.2), on crops of any size.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.lesions.plain_pickle import read_plain
from drgrade.messages import reason
from drgrade.params import Patches
from drgrade.schema import LESIONS

Boxes = dict[str, dict[str, list[tuple[float, float, float, float]]]]
"""Split -> image_id -> boxes (x1, y1, x2, y2) in crop pixels."""

SIDE = 512
"""Side in pixels of the paper's crops: its border and the published patches refer to this size."""
PROTOCOL = 4
COLUMNS = ["x1", "y1", "x2", "y2"]


def fitting(boxes: np.ndarray, params: Patches, size: int) -> np.ndarray:
    """Return which boxes (n, 4) in crop pixels fit into a patch and lie inside the border; (n,) bool.

    A box may be as large as the patch (``<=``) and must stay strictly inside the border, which is
    ``params.border`` pixels at 512 px crops.
    """
    border = params.border * size / SIDE
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = (boxes[:, :2] > border) & (boxes[:, 2:] < size - border)
    return ((sides <= params.size) & inside).all(axis=1)


def write_patches(patches: Boxes, path: Path) -> None:
    """Write the pickle; equal boxes give identical bytes."""
    with atomic_write(path) as partial:
        partial.write_bytes(pickle.dumps(patches, protocol=PROTOCOL))


def read_patches(path: Path) -> Boxes:
    """Read a patch pickle, ours or a published one, without executing code from it.

    Raises:
        UserError: the file is missing, is not a pickle, contains objects other than numbers, text and
            containers, or has a different structure.
    """
    content = _read_pickle(path)
    try:
        found: Boxes = {str(split): {} for split in content}
        for split, name, boxes in _images(content, path):
            found[split][name] = [_box(*box) for box in boxes]
        return found
    except (AttributeError, TypeError, ValueError, OverflowError):
        form = "{split: {image: [(x1, y1, x2, y2), ...]}}"
        raise UserError(f"{path}: not {form}; is it a raw prediction file?") from None


def read_published(path: Path, size: int, *, legacy_swap: bool) -> pd.DataFrame:
    """Read all boxes of a published pickle, unfiltered and with its sets combined.

    Raw predictions (form A) are ``{set: {image: [(R, C, x1, y1, x2, y2, score, class), ...]}}``: R and C are
    the rows and columns of the cropped, unscaled image that contains the boxes; the classes 0 to 3 are
    microaneurysm, haemorrhage, hard exudate and soft exudate. Patches (form B) are
    ``{set: {image: [(x1, y1, x2, y2), ...]}}`` in crops of 512 px, already filtered (specification 6).

    Args:
        path: the pickle.
        size: side in pixels of the crops that the boxes are scaled to.
        legacy_swap: scale x of raw predictions by the rows and y by the columns, a bug of the published code;
            needed to reproduce its patches, which are off by the aspect ratio of the crop. Form B already
            contains this error and is not changed.

    Returns:
        name (file name of the photograph), rows, columns, x1, y1, x2, y2 (crop pixels), score, lesion; rows,
        columns, score and lesion are missing values for form B.

    Raises:
        UserError: as :func:`read_patches`; or the boxes have mixed or unknown forms, an image size is not
            positive, or a class is unknown.
    """
    content = _read_pickle(path)
    try:
        images = [
            (name, np.array([[float(number) for number in box] for box in boxes]))
            for _, name, boxes in _images(content, path)
            if len(boxes)
        ]
        table = np.concatenate([boxes for _, boxes in images] or [np.empty((0, 4))])
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: not {{set: {{image: [numbers of a box, ...]}}}}") from None
    if not len(table) or table.ndim != 2 or table.shape[1] not in (4, 8) or not np.isfinite(table).all():
        raise UserError(f"{path}: neither 4 numbers for each box (patches) nor 8 (raw predictions)")
    names = pd.array(np.repeat([name for name, _ in images], [len(boxes) for _, boxes in images]), "string")
    if table.shape[1] == 4:
        found = pd.DataFrame(table * (size / SIDE), columns=COLUMNS)
        return found.assign(name=names, rows=np.nan, columns=np.nan, score=np.nan, lesion=_kinds(len(found)))
    down, across, kinds = table[:, 0], table[:, 1], table[:, 7]
    if not ((down > 0) & (across > 0) & np.isin(kinds, range(len(LESIONS)))).all():
        raise UserError(f"{path}: an image of no size or a class beyond 0-{len(LESIONS) - 1}")
    x, y = (down, across) if legacy_swap else (across, down)
    found = pd.DataFrame(table[:, 2:6] * (size / np.stack([x, y, x, y], axis=1)), columns=COLUMNS)
    lesion = pd.array(np.array(LESIONS)[kinds.astype(int)], "string")
    return found.assign(name=names, rows=down, columns=across, score=table[:, 6], lesion=lesion)


def _kinds(number: int) -> Any:
    return pd.array([None] * number, "string")


def _box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    return float(x1), float(y1), float(x2), float(y2)


def _images(content: Mapping[Any, Any], path: Path) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """Yield split, name and boxes of each image.

    Raises:
        UserError: there are more numbers than the file has bytes, so it refers to the same ones again and
            again, and a few kilobytes could fill the memory.
    """
    left = path.stat().st_size
    for split, images in content.items():
        for name, boxes in images.items():
            left -= 1 + len(boxes)
            if left >= 0:
                left -= sum(map(len, boxes))
            if left < 0:
                raise UserError(f"{path}: has the same boxes again and again; do not trust this file")
            yield str(split), str(name), boxes


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        content = read_plain(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the patches stage first") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"{path}: not a pickle of plain numbers ({reason(error)})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of splits")
    return content

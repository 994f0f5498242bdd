"""Where the boxes of the patches come from: the detector, lesion masks, a released file, or chance.

All give boxes in crop pixels, as a table: image_id, x1, y1, x2, y2, score, lesion.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry
from drgrade.lesions.masks import mask_boxes, read_mask
from drgrade.lesions.patches import COLUMNS, read_published
from drgrade.params import LesionBoxes
from drgrade.rng import numpy_rng
from drgrade.schema import LESION_BOXES, read_table

log = logging.getLogger(__name__)

Places = Mapping[str, CropGeometry]
"""Where the crop of each photograph that may be looked at lies."""

SAME_SIZE = 0.01
"""A released box is used when the crop it was found in has the size of ours, but for this share."""
ROUNDS = 100
"""Draws for a random box; about half of the places drawn are allowed, so a box that uses these up fits
nowhere."""


def detected(lesions: Path, places: Places) -> pd.DataFrame:
    """Detections of ``lesions.parquet`` (original pixels) in crop pixels, on photographs with a place."""
    return _to_crop(read_table(lesions, LESION_BOXES), places)


def masked(dataset: str, photographs: pd.DataFrame, places: Places, params: LesionBoxes) -> pd.DataFrame:
    """Boxes of the lesions drawn in masks, without a score.

    Args:
        dataset: whose masks.
        photographs: image_id, width and height (original pixels) of those to look at; one without masks gives
            no box.
        places: their crops.
        params: how masks become boxes.

    Raises:
        UserError: no photograph has a mask; a mask is unreadable or of another size than its photograph.
    """
    table = drawn(dataset, photographs, params)
    if table.empty:
        raise UserError(
            f"boxes: masks: no training photograph of {dataset!r} has lesion masks; "
            f"take boxes: detector in pretrain, or a dataset with masks as roles.pretrain"
        )
    return _to_crop(table, places)


def drawn(dataset: str, photographs: pd.DataFrame, params: LesionBoxes) -> pd.DataFrame:
    """Boxes of the lesions drawn in masks, in original pixels; arguments and errors as of :func:`masked`."""
    source, root = DATASETS.get(dataset)(), raw_root(dataset)
    parts = [_table("", np.empty((0, 4)), "")]
    for _, row in photographs.iterrows():
        for lesion, path in sorted(source.masks(root, row["image_id"]).items()):
            mask = read_mask(path)
            if mask.shape != (row["height"], row["width"]):
                raise UserError(
                    f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, but its photograph has "
                    f"{row['width']} x {row['height']}; use the pair as published"
                )
            boxes = mask_boxes(mask, params.mode, params.min_area, params.merge_distance)
            parts.append(_table(row["image_id"], boxes, lesion))
    return pd.concat(parts, ignore_index=True)


def published(path: Path, places: Places, size: int, *, legacy_swap: bool) -> pd.DataFrame:
    """Boxes of a released pickle whose names, without folder and suffix, are image_ids.

    Photographs that are not among the ``places`` are passed over: whatever a file calls its sets, the own
    split decides. So are raw predictions on crops of another size than ours.

    Raises:
        UserError: as :func:`read_published`; no photograph is left.
    """
    table = read_published(path, size, legacy_swap=legacy_swap)
    stems = {name: Path(name).stem for name in table["name"].unique()}
    table = table.assign(image_id=table["name"].map(stems).astype("string"))
    known = table[table["image_id"].isin(places.keys())]
    boxes = np.array([places[image_id].box for image_id in known["image_id"]]).reshape(-1, 4)
    own = boxes[:, [3, 2]] - boxes[:, [1, 0]]  # rows, columns
    same = (np.abs(known[["rows", "columns"]].to_numpy(float) - own) <= SAME_SIZE * own).all(axis=1)
    used = known[same | known["rows"].isna().to_numpy()]
    log.info(
        "%s: boxes of %d photographs, %d of them to learn from, %d with a crop of the same size",
        path, len(stems), known["image_id"].nunique(), used["image_id"].nunique(),
    )  # fmt: skip
    if used.empty:
        why = "were cropped to our size" if len(known) else "are in our training or validation split"
        raise UserError(
            f"{path}: none of its {len(stems)} photographs ({table['name'].iloc[0]}, ...) {why}; "
            f"is it of the dataset in roles.pretrain?"
        )
    return used[["image_id", *COLUMNS, "score", "lesion"]].reset_index(drop=True)


def at_random(
    boxes: pd.DataFrame, photographs: pd.DataFrame, places: Places, border: float, seed: int
) -> pd.DataFrame:
    """The same boxes elsewhere: each photograph keeps their number, sizes, scores and kinds.

    Every place where a box lies wholly on the retina is as likely as any other. The retina is the disc that
    touches the ``border``, which the crop rules fit to the field of view, as far as the photograph shows it.

    Args:
        boxes: the table to take the sizes from.
        photographs: image_id, width and height in original pixels.
        places: their crops.
        border: distance to keep from the crop's edge, in crop pixels.
        seed: a photograph's boxes depend on it and on image_id, not on other photographs.
    """
    columns = (photographs[name] for name in ("image_id", "width", "height"))
    extent = {image_id: (width, height) for image_id, width, height in zip(*columns, strict=True)}
    moved = boxes[COLUMNS].to_numpy(np.float64, copy=True)
    for image_id, found in boxes.groupby("image_id").indices.items():
        place = places[str(image_id)]
        shown = place.boxes_to_crop([[0, 0, *extent[image_id]]])[0].clip(border, place.size - border)
        sides = moved[found, 2:] - moved[found, :2]
        rng = numpy_rng(seed, "patches", str(image_id))
        moved[found] = random_boxes(sides, shown, place.size / 2, place.size / 2 - border, rng)
    return boxes.assign(**dict(zip(COLUMNS, moved.T, strict=True)))


def random_boxes(
    sides: np.ndarray, frame: np.ndarray, centre: float, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Boxes (n, 4) of the given sides (n, 2), uniform where all of a box is in the frame and the disc.

    Args:
        sides: width and height.
        frame: (x1, y1, x2, y2).
        centre: of the disc, both coordinates.
        radius: of the disc.
        rng: source of chance.

    Returns:
        x1, y1, x2, y2; a box that fits nowhere lies in the middle of the disc.
    """
    half = sides / 2
    reach = np.sqrt(np.maximum(radius**2 - half[:, ::-1] ** 2, 0)) - half  # of its centre, on an axis
    low = np.maximum(centre - reach, frame[:2] + half)
    high = np.maximum(np.minimum(centre + reach, frame[2:] - half), low)
    middle = np.full_like(half, centre)
    todo = np.arange(len(sides))
    for _ in range(ROUNDS):
        point = rng.uniform(low[todo], high[todo])
        corner = np.abs(point - centre) + half[todo]  # the farthest one
        inside = (point - half[todo] >= frame[:2]) & (point + half[todo] <= frame[2:])
        good = (np.sum(corner**2, axis=1) <= radius**2) & inside.all(axis=1)
        middle[todo[good]] = point[good]
        todo = todo[~good]
        if not len(todo):
            break
    return np.concatenate([middle - half, middle + half], axis=1)


def _table(image_id: str, boxes: np.ndarray, lesion: str) -> pd.DataFrame:
    table = pd.DataFrame(boxes.astype(np.float64), columns=COLUMNS)
    table = table.assign(image_id=image_id, score=np.nan, lesion=lesion)
    return table.astype({"image_id": "string", "lesion": "string"})


def _to_crop(table: pd.DataFrame, places: Places) -> pd.DataFrame:
    """Boxes of the photographs with a place, moved there from original pixels."""
    table = table[table["image_id"].isin(places.keys())].reset_index(drop=True)
    boxes = table[COLUMNS].to_numpy(np.float64, copy=True)
    for image_id, found in table.groupby("image_id").indices.items():
        boxes[found] = places[str(image_id)].boxes_to_crop(boxes[found])
    return table.assign(**dict(zip(COLUMNS, boxes.T, strict=True)))

"""Sources of patch boxes: the detector, lesion masks, a published file, or random positions.

All return boxes in crop pixels, as a table with the columns image_id, x1, y1, x2, y2, score, lesion.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.images.geometry import CropGeometry, boxes_to_crops
from drgrade.lesions.masks import mask_boxes, read_mask
from drgrade.lesions.patches import COLUMNS, read_published
from drgrade.params import LesionBoxes
from drgrade.rng import numpy_rng
from drgrade.schema import LESION_BOXES, read_table

log = logging.getLogger(__name__)

Places = Mapping[str, CropGeometry]
"""Crop geometry by image_id, for the photographs that may be used."""

SAME_SIZE = 0.01
"""Relative tolerance on height and width: a published box is used only if its crop matches ours in size."""
ROUNDS = 100
"""Most attempts to place a random box. About half of the attempts succeed, so a box that fails all of them
does not fit anywhere."""


def detected(lesions: Path, places: Places) -> pd.DataFrame:
    """Read ``lesions.parquet`` (original pixels) and return its boxes in crop pixels, for ``places`` only."""
    return _to_crop(read_table(lesions, LESION_BOXES), places)


def masked(dataset: str, photographs: pd.DataFrame, places: Places, params: LesionBoxes) -> pd.DataFrame:
    """Return boxes around the lesions in masks, in crop pixels; the score is missing.

    Args:
        dataset: name of the dataset with masks.
        photographs: image_id, width and height (original pixels) of the photographs to use; one without masks
            gives no box.
        places: crop geometry by image_id.
        params: how masks are converted to boxes.

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
    """Return boxes around the lesions in masks, in original pixels.

    See :func:`masked` for arguments and errors; a table without boxes is not an error here.
    """
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
    """Return the boxes of a published pickle; file names without folder and suffix must be image_ids.

    Photographs not in ``places`` are skipped: our split decides which are used, whatever the file calls its
    sets. Raw predictions on crops of a different size than ours are skipped too.

    Raises:
        UserError: as :func:`read_published`; or no photograph is left.
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
    """Move boxes to random positions; each photograph keeps their number, sizes, scores and kinds.

    Positions are uniform over those where the whole box lies on the retina. The retina is taken to be the
    disc inscribed in the crop less ``border``, intersected with the area that the photograph covers.

    Args:
        boxes: table of boxes in crop pixels.
        photographs: image_id, width and height in original pixels.
        places: crop geometry by image_id.
        border: distance to keep from the crop's edge, in crop pixels.
        seed: random seed; a photograph's boxes depend on it and on image_id, not on other photographs.
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
    """Draw boxes at uniformly random positions that lie entirely inside both a rectangle and a disc.

    Args:
        sides: width and height of each box (n, 2).
        frame: the rectangle (x1, y1, x2, y2).
        centre: x and y coordinate (the same number) of the disc's centre.
        radius: radius of the disc.
        rng: random generator.

    Returns:
        Boxes (n, 4) as x1, y1, x2, y2; a box that does not fit is centred in the disc.
    """
    half = sides / 2
    reach = np.sqrt(np.maximum(radius**2 - half[:, ::-1] ** 2, 0)) - half  # largest offset of a centre
    low = np.maximum(centre - reach, frame[:2] + half)
    high = np.maximum(np.minimum(centre + reach, frame[2:] - half), low)
    middle = np.full_like(half, centre)
    todo = np.arange(len(sides))
    for _ in range(ROUNDS):
        point = rng.uniform(low[todo], high[todo])
        corner = np.abs(point - centre) + half[todo]  # offset of the farthest corner
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
    """Keep the photographs in ``places`` and convert their boxes from original to crop pixels."""
    table = table[table["image_id"].isin(places.keys())].reset_index(drop=True)
    number, names = pd.factorize(table["image_id"])
    edges = np.array([places[str(name)].box for name in names], np.float64).reshape(-1, 4)
    sizes = np.array([places[str(name)].size for name in names], np.float64)
    boxes = boxes_to_crops(table[COLUMNS].to_numpy(np.float64), edges[number], sizes[number, None])
    return table.assign(**dict(zip(COLUMNS, boxes.T, strict=True)))

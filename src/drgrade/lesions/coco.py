"""Convert lesion masks to COCO: tiles of the photographs with masks, annotated with lesion boxes."""

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.images.read import ReadError, read_photograph
from drgrade.lesions.masks import mask_lesions, read_mask, run_lengths
from drgrade.lesions.tiles import Tile, Tiling
from drgrade.params import LesionBoxes
from drgrade.schema import CROPS, INDEX, LESIONS, read_table

log = logging.getLogger(__name__)

CATEGORIES: list[dict[str, Any]] = [
    {"id": number, "name": lesion} for number, lesion in enumerate(LESIONS, start=1)
]
VISIBLE = 0.4
"""Minimum fraction of a lesion's box inside a tile for the lesion to be annotated on that tile."""
QUALITY = [
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]


@dataclass(frozen=True)
class Seen:
    """The visible lesions of one kind on a tile.

    Attributes:
        boxes: (n, 4), x1 y1 x2 y2 in tile pixels.
        segmentations: one COCO segmentation for each lesion: run-length encoding, or a polygon (parity mode).
        areas: (n,) in square tile pixels.
    """

    boxes: np.ndarray
    segmentations: list[Any]
    areas: list[float]


@dataclass
class Coco:
    """Builder of a COCO file.

    Identifiers start at 1, because COCO evaluation treats annotation id 0 as "no match".
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file_name: str, encoded: bytes, tile: Tile, seen: dict[str, Seen]) -> None:
        """Add a tile, the encoded bytes of its image file, and its lesions by kind.

        The SHA-256 of the bytes is stored, so that COCO files can be compared without reading the tiles.
        """
        height, width = tile.pixels.shape[:2]
        image_id = len(self.images) + 1
        row = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.images.append(row | {"sha256": hashlib.sha256(encoded).hexdigest()})
        for category in CATEGORIES:
            kind = seen.get(category["name"], Seen(np.empty((0, 4)), [], []))
            rows = zip(kind.boxes.round(3).tolist(), kind.segmentations, kind.areas, strict=True)
            for (x1, y1, x2, y2), segmentation, area in rows:
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": image_id,
                        "category_id": category["id"],
                        "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                        "area": round(area, 3),
                        "segmentation": segmentation,
                        "iscrowd": 0,
                    }
                )

    def write(self, path: Path) -> None:
        """Write images, annotations and the categories of all lesions as JSON."""
        write_json({"images": self.images, "annotations": self.annotations, "categories": CATEGORIES}, path)


def see(boxes: np.ndarray, tile: Tile, labels: np.ndarray, params: LesionBoxes) -> Seen:
    """Return the lesions visible on a tile, from boxes (n, 4) in original pixels.

    ``labels`` (h, w) is the tile's label map: 0 is background, i + 1 belongs to box i.
    """
    shown, rows = visible_boxes(boxes, tile, params.min_side)
    return rectangles(shown) if params.mode == "parity" else outlined(shown, rows, labels)


def outlined(boxes: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> Seen:
    """Return lesions with run-length masks taken from the tile's label map (h, w).

    ``boxes`` (n, 4) are in tile pixels; box i has the label ``rows[i] + 1``. A lesion that lost all its
    pixels when the map was scaled gets the one pixel at the centre of its box.
    """
    height, width = labels.shape
    segmentations, areas = [], []
    for (x1, y1, x2, y2), row in zip(boxes, rows, strict=True):
        left, top = int(x1), int(y1)
        own = labels[top : math.ceil(y2), left : math.ceil(x2)] == row + 1
        if not own.any():
            left, top = min(int((x1 + x2) / 2), width - 1), min(int((y1 + y2) / 2), height - 1)
            own = np.ones((1, 1), bool)
        segmentations.append(
            {"size": [height, width], "counts": run_lengths(own, (left, top), (height, width))}
        )
        areas.append(float(own.sum()))
    return Seen(boxes, segmentations, areas)


def rectangles(boxes: np.ndarray) -> Seen:
    """Return lesions in the published form (specification 4.3): 8-point rectangles, area (w + 1)(h + 1)."""
    segmentations, areas = [], []
    for x1, y1, x2, y2 in boxes.round(3).tolist():
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        segmentations.append([[x1, y1, x, y1, x2, y1, x2, y, x2, y2, x, y2, x1, y2, x1, y]])
        areas.append((x2 - x1 + 1) * (y2 - y1 + 1))
    return Seen(boxes, segmentations, areas)


def visible_boxes(boxes: np.ndarray, tile: Tile, min_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert boxes (n, 4) from original to tile pixels; return those that remain (m, 4) and their rows (m,).

    Sides shorter than ``min_side`` tile pixels are enlarged to it around the box's centre. Boxes are clipped
    to the tile; those with less than 40 % of their area inside are dropped.
    """
    moved = tile.boxes_to_tile(boxes)
    grow = np.maximum(min_side - (moved[:, 2:] - moved[:, :2]), 0) / 2
    moved = np.concatenate([moved[:, :2] - grow, moved[:, 2:] + grow], axis=1)
    height, width = tile.pixels.shape[:2]
    clipped = np.clip(moved, 0, [width, height, width, height])
    inside = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / np.prod(moved[:, 2:] - moved[:, :2], axis=1)
    shown = np.flatnonzero(inside >= VISIBLE)
    return clipped[shown], shown


def photographs(
    dataset: str, index: Path, crops: Path, subsets: tuple[str, ...]
) -> Iterator[tuple[pd.Series, np.ndarray, tuple[int, int, int, int]]]:
    """Yield index row, pixels (H, W, 3) uint8 RGB and crop box of each usable photograph, by image_id.

    Usable means: in one of the ``subsets``, with status ok in the index and in ``crops.parquet``.
    A photograph that cannot be read is logged and skipped; ``crops.parquet`` gives the reason.
    """
    table = read_table(index, INDEX)
    table = table[table["subset"].isin(subsets) & (table["status"] == "ok")]
    boxes = read_table(crops, CROPS)
    boxes = boxes.loc[boxes["status"] == "ok", ["image_id", "x0", "y0", "x1", "y1"]]
    root = raw_root(dataset)
    for _, row in table.merge(boxes, on="image_id").sort_values("image_id").iterrows():
        try:
            image = read_photograph(root / row["path"])
        except ReadError as error:
            log.warning("%s: skipped, %s", row["image_id"], error)
            continue
        yield row, image, (int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"]))


def make_lesion_boxes(dataset: str, index: Path, crops: Path, params: LesionBoxes, out: Path) -> None:
    """Cut the photographs with lesion masks into tiles and write COCO files for the detector.

    Writes ``out/train.json``, ``out/val.json`` (categories 1-4 = MA, HE, EX, SE) and their tiles,
    ``out/images/<image_id>__x<left>_y<top>.jpg``, named by their offset in the scaled crop box. Tiles
    without a lesion are kept as background; tiles outside the field of view are not written.

    Raises:
        UserError: no photograph with masks in the training or in the validation split, or a mask that
            is unreadable or differs in size from its photograph.
    """
    source = DATASETS.get(dataset)()
    tiling = Tiling(params.tile, params.overlap, params.scale)
    shutil.rmtree(out / "images", ignore_errors=True)  # remove tiles of an earlier run
    (out / "images").mkdir(parents=True)
    files = {"train": Coco(), "val": Coco()}
    for split in files:
        (out / f"{split}.json").unlink(missing_ok=True)  # written again once all tiles exist
    for row, image, box in photographs(dataset, index, crops, ("segmentation",)):
        if row["split"] not in files:
            continue
        masks = source.masks(raw_root(dataset), row["image_id"])
        lesions = {lesion: _lesions(path, image.shape, params) for lesion, path in sorted(masks.items())}
        maps = np.zeros((*image.shape[:2], max(len(lesions), 1)), np.int32)
        for layer, (_, labels) in enumerate(lesions.values()):
            maps[..., layer] = labels
        for tile, marked in zip(tiling.cut(image, box), tiling.cut(maps, box, labels=True), strict=True):
            if tile.outside:
                continue
            name = f"{row['image_id']}__x{tile.offset[0]}_y{tile.offset[1]}.jpg"
            seen = {
                lesion: see(boxes, tile, marked.pixels[..., layer], params)
                for layer, (lesion, (boxes, _)) in enumerate(lesions.items())
            }
            encoded = cv2.imencode(".jpg", tile.pixels[..., ::-1], QUALITY)[1].tobytes()
            files[row["split"]].add(name, encoded, tile, seen)
            (out / "images" / name).write_bytes(encoded)
    for split, coco in files.items():
        if not coco.images:
            raise UserError(
                f"{index}: no usable photograph with lesion masks in split {split}; "
                f"see its status and reason columns, or give {dataset!r} more such photographs"
            )
        coco.write(out / f"{split}.json")
        log.info("%s: %d tiles, %d lesions", split, len(coco.images), len(coco.annotations))


def _lesions(path: Path, shape: tuple[int, ...], params: LesionBoxes) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (n, 4) and the label map (H, W) of a mask."""
    mask = read_mask(path)
    if mask.shape != shape[:2]:
        raise UserError(
            f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, but its photograph has "
            f"{shape[1]} x {shape[0]}; use the pair as published"
        )
    return mask_lesions(mask, params.mode, params.min_area, params.merge_distance)

"""A dataset of small photographs with drawn lesions, for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from drgrade.data.registry import DATASETS
from drgrade.schema import CROPS, INDEX, write_table

HEIGHT, WIDTH = 150, 200
BOX = (20, -10, 190, 160)
"""Crop box, which reaches outside the photographs above and below."""

Lesions = Mapping[str, tuple[int, int, int, int] | None]
"""A rectangle (x0, y0, x1, y1) for each kind; None: looked for, there is none."""


@DATASETS.register("marked")
class Marked:
    """A mask file for each kind that was looked for."""

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        return {path.stem.split("_")[1]: path for path in sorted(root.glob(f"{image_id}_*.png"))}


def rectangle(box: tuple[int, int, int, int] | None) -> np.ndarray:
    """Mask (HEIGHT, WIDTH) bool of a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if box is not None:
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = True
    return mask


def photograph(number: int, lesions: Lesions) -> np.ndarray:
    """Noise, with white lesions."""
    pixels = np.random.default_rng(number).integers(40, 90, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for box in lesions.values():
        pixels[rectangle(box)] = 255
    return pixels


def write_marked(folder: Path, photographs: Mapping[str, Lesions], splits: Mapping[str, str]) -> None:
    """Write ``index.parquet``, ``crops.parquet`` and, in ``raw``, photographs and masks."""
    raw = folder / "raw"
    raw.mkdir()
    for number, (name, lesions) in enumerate(photographs.items()):
        Image.fromarray(photograph(number, lesions)).save(raw / f"{name}.png")
        for kind, box in lesions.items():
            Image.fromarray(rectangle(box).astype(np.uint8) * 255).save(raw / f"{name}_{kind}.png")
    names = list(photographs)
    index = pd.DataFrame({"image_id": names, "patient_id": names, "sha256": names}).assign(
        path=[f"{name}.png" for name in names],
        split=[splits[name] for name in names],
        subset="segmentation",
        status="ok",
    )
    write_table(index.reindex(columns=list(INDEX)), folder / "index.parquet", INDEX)
    crops = index[["image_id"]].assign(**dict(zip(("x0", "y0", "x1", "y1"), BOX, strict=True)), status="ok")
    write_table(crops.reindex(columns=list(CROPS)), folder / "crops.parquet", CROPS)

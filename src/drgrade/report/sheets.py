"""Contact sheets: what the crops look like, and where the detector sees lesions in them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from drgrade.images.store import Crops
from drgrade.report.plots import INK, LESION_COLOURS, figure
from drgrade.rng import derive
from drgrade.schema import GRADE_NAMES, LESION_NAMES

BOXES = ["x1", "y1", "x2", "y2"]
LESION_PHOTOGRAPHS = 6
MEASURES = ("fov", "sharpness", "exposure", "contrast")
"""Columns of the index whose lowest is the quality."""


def choose(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """Photographs for a sheet: every grade in turn, within a grade in an order that has no favourites.

    Args:
        table: image_id, grade (missing for ungraded photographs, a group of their own).
        number: photographs wanted; fewer come back when the table has fewer.

    Returns:
        The chosen rows, by grade, ungraded last. The same table gives the same choice.
    """
    order = table.assign(place=[derive(0, "sheet", str(name)) for name in table["image_id"]])
    groups = [list(rows.index) for _, rows in order.sort_values("place").groupby("grade", dropna=False)]
    turns = chain.from_iterable(zip_longest(*groups))
    chosen = [place for place in turns if place is not None][:number]
    return table.loc[chosen].sort_values(["grade", "image_id"], na_position="last")


def grade_label(grade: Any) -> str:
    """``2 moderate``, or ``not graded``."""
    return "not graded" if pd.isna(grade) else f"{grade} {GRADE_NAMES[grade]}"


def crop_sheet(index: pd.DataFrame, crops: Crops, number: int, path: Path, columns: int = 8) -> None:
    """Crops with their grades above them, all grades by turns.

    Args:
        index: ``index.parquet``.
        crops: of the same photographs.
        number: of crops on the sheet.
        path: PNG to write.
        columns: crops in a line.
    """
    chosen = choose(index[index["image_id"].isin(crops.rows.keys())], number)
    lines = max(1, -(-len(chosen) // columns))
    with figure(path, 1.35 * columns, 1.55 * lines) as drawn:
        for axes, row in _tiles(drawn.subplots(lines, columns, squeeze=False), chosen):
            axes.imshow(shrunk(crops[row["image_id"]], 160), interpolation="antialiased")
            axes.set_title(grade_label(row["grade"]), fontsize=8, pad=2)


def worst(index: pd.DataFrame, number: int) -> pd.DataFrame:
    """Photographs of the lowest quality, worst first, with a column ``blame``: the lowest measure."""
    measured = index[index["quality"].notna()]
    chosen = measured.sort_values(["quality", "image_id"]).head(number)
    return chosen.assign(blame=chosen[list(MEASURES)].astype(float).idxmin(axis=1))


def worst_sheet(index: pd.DataFrame, crops: Crops, number: int, path: Path, columns: int = 8) -> None:
    """Crops of the lowest quality, worst first, with their score and the measure that is to blame.

    Args:
        index: ``index.parquet``; photographs without measures are left out.
        crops: of the same photographs.
        number: of crops on the sheet.
        path: PNG to write.
        columns: crops in a line.
    """
    chosen = worst(index[index["image_id"].isin(crops.rows.keys())], number)
    lines = max(1, -(-len(chosen) // columns))
    with figure(path, 1.35 * columns, 1.7 * lines) as drawn:
        for axes, row in _tiles(drawn.subplots(lines, columns, squeeze=False), chosen):
            axes.imshow(shrunk(crops[row["image_id"]], 160), interpolation="antialiased")
            axes.set_title(f"{row['image_id']}\n{row['blame']} {row['quality']:.2f}", fontsize=7, pad=2)


def lesion_sheet(
    index: pd.DataFrame, crops: Crops, lesions: pd.DataFrame, patches: Mapping[str, Any], path: Path
) -> None:
    """Crops with the detections that pretraining may use drawn as boxes, a colour for each kind of lesion.

    Photographs are those with a detection, all grades by turns; when none has one, the sheet says so.

    Args:
        index: ``index.parquet``.
        crops: of the same photographs.
        lesions: ``lesions.parquet``, boxes in original pixels.
        patches: block ``patches`` of the params: min_score and kinds of lesion.
        path: PNG to write.
    """
    shown = lesions[
        (lesions["score"] > patches["min_score"])
        & lesions["lesion"].isin(patches["lesions"])
        & lesions["image_id"].isin(crops.rows.keys())
    ]
    chosen = choose(index[index["image_id"].isin(shown["image_id"])], LESION_PHOTOGRAPHS)
    with figure(path, 10.5, 7.6) as drawn:
        for axes, row in _tiles(drawn.subplots(2, LESION_PHOTOGRAPHS // 2, squeeze=False), chosen):
            boxes = shown[shown["image_id"] == row["image_id"]]
            draw_boxes(axes, crops, row["image_id"], boxes)
            axes.set_title(
                f"{row['image_id']}: {grade_label(row['grade'])}, {len(boxes)} lesions", fontsize=9
            )
        shape: Any = {"marker": "s", "markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none"}
        keys = [
            Line2D([], [], color=colour, label=LESION_NAMES[lesion], **shape)
            for lesion, colour in LESION_COLOURS.items()
        ]
        legend = drawn.legend(
            handles=keys, ncols=4, loc="outside lower center", facecolor=INK, labelcolor="white"
        )
        if chosen.empty:
            legend.set_title(f"no detection scores above {patches['min_score']:g}")
            legend.get_title().set_color("white")


def draw_boxes(axes: Axes, crops: Crops, image_id: str, boxes: pd.DataFrame) -> None:
    """One crop with boxes, which arrive in original pixels (x1, y1, x2, y2) and are moved into the crop."""
    size = crops.size
    axes.imshow(crops[image_id], extent=(0, size, size, 0), interpolation="antialiased")
    moved = crops.geometry(image_id).boxes_to_crop(boxes[BOXES].to_numpy(np.float64))
    for (x1, y1, x2, y2), lesion in zip(moved, boxes["lesion"], strict=True):
        colour = LESION_COLOURS[lesion]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.1))
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)


def shrunk(crop: np.ndarray, side: int) -> np.ndarray:
    """A crop (S, S, 3) no larger than ``side``, by area averaging."""
    if crop.shape[0] <= side:
        return crop
    return cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)


def _tiles(grid: np.ndarray, chosen: pd.DataFrame) -> Iterator[tuple[Axes, pd.Series]]:
    """Axes and row for each photograph; axes without frame or ticks, the spare ones empty."""
    places: Sequence[Axes] = list(grid.flat)
    for axes in places:
        axes.set_axis_off()
    yield from zip(places, (row for _, row in chosen.iterrows()), strict=False)

"""Contact sheets of crops: by grade, of lowest quality, with lesions, with heat maps, of the worst errors."""

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

from drgrade.images.crop import cut
from drgrade.images.geometry import CropGeometry
from drgrade.images.store import Crops
from drgrade.report.plots import INK, LESION_COLOURS, figure
from drgrade.rng import derive
from drgrade.schema import GRADE_NAMES, LESION_NAMES

BOXES = ["x1", "y1", "x2", "y2"]
LESION_PHOTOGRAPHS = 6
SIDE = 160
"""Side of a crop on a sheet in pixels."""
OPACITY = 0.5
"""Opacity of the colours where a heat map is hottest."""
MEASURES = ("fov", "sharpness", "exposure", "contrast")
"""Quality measures in the index; the column ``quality`` is their minimum."""


def choose(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """Choose photographs for a sheet: alternating over the grades, pseudo-random within a grade.

    Args:
        table: image_id and grade (missing for ungraded photographs, which form a group of their own).
        number: maximum number of photographs.

    Returns:
        The chosen rows, sorted by grade, ungraded last. The same table always gives the same choice.
    """
    order = table.assign(place=[derive(0, "sheet", str(name)) for name in table["image_id"]])
    groups = [list(rows.index) for _, rows in order.sort_values("place").groupby("grade", dropna=False)]
    turns = chain.from_iterable(zip_longest(*groups))
    chosen = [place for place in turns if place is not None][:number]
    return table.loc[chosen].sort_values(["grade", "image_id"], na_position="last")


def grade_label(grade: Any) -> str:
    """Return a grade with its name, such as ``2 moderate``, or ``not graded`` if it is missing."""
    return "not graded" if pd.isna(grade) else f"{grade} {GRADE_NAMES[grade]}"


def crop_sheet(index: pd.DataFrame, crops: Crops, number: int, path: Path, columns: int = 8) -> None:
    """Write a contact sheet of crops titled with their grades, with all grades represented.

    Args:
        index: ``index.parquet``.
        crops: crops of the same photographs.
        number: maximum number of crops on the sheet.
        path: PNG to write.
        columns: crops in a row.
    """
    chosen = choose(index[index["image_id"].isin(crops.rows.keys())], number)
    lines = max(1, -(-len(chosen) // columns))
    with figure(path, 1.35 * columns, 1.55 * lines) as drawn:
        for axes, row in _tiles(drawn.subplots(lines, columns, squeeze=False), chosen):
            axes.imshow(shrunk(crops[row["image_id"]], SIDE), interpolation="antialiased")
            axes.set_title(grade_label(row["grade"]), fontsize=8, pad=2)


def worst(index: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return the photographs of lowest quality, worst first; column ``blame`` names the lowest measure."""
    measured = index[index["quality"].notna()]
    chosen = measured.sort_values(["quality", "image_id"]).head(number)
    return chosen.assign(blame=chosen[list(MEASURES)].astype(float).idxmin(axis=1))


def worst_sheet(index: pd.DataFrame, crops: Crops, number: int, path: Path, columns: int = 8) -> None:
    """Write a contact sheet of the crops of lowest quality, worst first, with quality and lowest measure.

    Args:
        index: ``index.parquet``; photographs without quality measures are left out.
        crops: crops of the same photographs.
        number: maximum number of crops on the sheet.
        path: PNG to write.
        columns: crops in a row.
    """
    chosen = worst(index[index["image_id"].isin(crops.rows.keys())], number)
    lines = max(1, -(-len(chosen) // columns))
    with figure(path, 1.35 * columns, 1.7 * lines) as drawn:
        for axes, row in _tiles(drawn.subplots(lines, columns, squeeze=False), chosen):
            axes.imshow(shrunk(crops[row["image_id"]], SIDE), interpolation="antialiased")
            axes.set_title(f"{row['image_id']}\n{row['blame']} {row['quality']:.2f}", fontsize=7, pad=2)


def error_sheet(errors: pd.DataFrame, crops: Crops, path: Path, columns: int = 6) -> None:
    """Write a contact sheet of wrongly graded photographs, with true grade, predicted grade and probability.

    Args:
        errors: rows of ``errors.csv`` of one experiment, worst first; may be empty.
        crops: crops of these photographs.
        path: PNG to write.
        columns: crops in a row.
    """
    lines = max(1, -(-len(errors) // columns))
    with figure(path, 1.75 * columns, 2.25 * lines) as drawn:
        for axes, row in _tiles(drawn.subplots(lines, columns, squeeze=False), errors):
            axes.imshow(shrunk(crops[row["image_id"]], SIDE), interpolation="antialiased")
            found = f"predicted {row['predicted']}, probability {row['probability']:.2f}"
            axes.set_title(f"true grade {row['grade']}\n{found}\n{row['image_id']}", fontsize=7, pad=2)
        if errors.empty:
            drawn.suptitle("every test photograph was graded correctly")


def heat_map_sheet(index: pd.DataFrame, crops: Crops, maps: Path, path: Path, columns: int = 6) -> None:
    """Write a contact sheet of graded photographs in order of their grades, each above its heat map.

    Args:
        index: ``index.parquet``.
        crops: crops of the same photographs.
        maps: folder of heat maps over whole photographs, ``<image_id>.png``, grey 0-255; photographs without
            one are left out.
        path: PNG to write.
        columns: photographs in a row.
    """
    graded = index[index["grade"].notna() & index["image_id"].isin(crops.rows.keys())]
    there = [(maps / f"{name}.png").is_file() for name in graded["image_id"]]
    shown = graded[there].sort_values(["grade", "image_id"])
    lines = max(1, -(-len(shown) // columns))
    with figure(path, 1.75 * columns, 3.6 * lines) as drawn:
        grid = drawn.subplots(2 * lines, columns, squeeze=False)
        pairs = np.stack([grid[::2].ravel(), grid[1::2].ravel()], axis=1)
        for axes in grid.flat:
            axes.set_axis_off()
        for (above, below), (_, row) in zip(pairs, shown.iterrows(), strict=False):
            name, crop = row["image_id"], shrunk(crops[row["image_id"]], SIDE)
            heat = heat_in_crop(maps / f"{name}.png", crops.geometry(name), int(row["width"]), len(crop))
            above.set_title(f"{grade_label(row['grade'])}\n{name}", fontsize=7, pad=2)
            above.imshow(crop, interpolation="antialiased")
            below.imshow(crop, interpolation="antialiased")
            below.imshow(heat, cmap="turbo", vmin=0, vmax=1, alpha=OPACITY * heat)
        if shown.empty:
            drawn.suptitle("no graded photograph has a heat map")


def heat_in_crop(path: Path, geometry: CropGeometry, width: int, side: int) -> np.ndarray:
    """Read the heat map of a photograph and cut out its crop: (side, side), 0-1.

    Args:
        path: map of the whole photograph, grey 0-255, of any size.
        geometry: position of the crop.
        width: width of the photograph in pixels, in which the position is.
        side: side of the result in pixels.
    """
    colours = np.asarray(cv2.imread(str(path)), np.uint8)
    scale = colours.shape[1] / width
    x0, y0, x1, y1 = (round(edge * scale) for edge in geometry.box)
    return cut(colours, CropGeometry(x0, y0, x1, y1, side))[..., 0] / 255


def lesion_sheet(
    index: pd.DataFrame, crops: Crops, lesions: pd.DataFrame, patches: Mapping[str, Any], path: Path
) -> None:
    """Write a contact sheet of crops with the detections above the score threshold for pretraining as boxes.

    Shows photographs with such a detection, alternating over the grades; if there are none, the legend says
    so. Each kind of lesion has its own colour.

    Args:
        index: ``index.parquet``.
        crops: crops of the same photographs.
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
    """Draw one crop with boxes, given in original pixels (x1, y1, x2, y2) and converted to crop pixels."""
    size = crops.size
    axes.imshow(crops[image_id], extent=(0, size, size, 0), interpolation="antialiased")
    moved = crops.geometry(image_id).boxes_to_crop(boxes[BOXES].to_numpy(np.float64))
    for (x1, y1, x2, y2), lesion in zip(moved, boxes["lesion"], strict=True):
        colour = LESION_COLOURS[lesion]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.1))
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)


def shrunk(crop: np.ndarray, side: int) -> np.ndarray:
    """Return a crop (S, S, 3) downscaled by area averaging to at most ``side`` pixels."""
    if crop.shape[0] <= side:
        return crop
    return cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)


def _tiles(grid: np.ndarray, chosen: pd.DataFrame) -> Iterator[tuple[Axes, pd.Series]]:
    """Yield axes and row for each photograph; axes have no frame and ticks, surplus ones are empty."""
    places: Sequence[Axes] = list(grid.flat)
    for axes in places:
        axes.set_axis_off()
    yield from zip(places, (row for _, row in chosen.iterrows()), strict=False)

"""Contact sheet with examples of a detector's hits, misses and false positives."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from drgrade.images.crop import cut
from drgrade.images.geometry import CropGeometry
from drgrade.report.plots import LESION_COLOURS, figure
from drgrade.rng import derive

BOXES = ["x1", "y1", "x2", "y2"]
VERDICTS = {"hit": "solid", "missed": "dashed", "false alarm": "dotted"}
"""Line style of a box by verdict."""
SURROUND = 48
"""Minimum side of a cutout in image pixels: a microaneurysm is recognised by its surroundings."""


def verdicts(
    truth: pd.DataFrame, found: pd.DataFrame, scores: Mapping[str, float | None], each: int
) -> pd.DataFrame:
    """Choose examples of hits, misses and false positives: up to ``each`` for every kind and verdict.

    Args:
        truth: lesions of :class:`drgrade.lesions.matching.Matches`: image, lesion, x1, y1, x2, y2, score.
        found: detections: the same columns and hit.
        scores: score threshold by lesion; None excludes all detections of that kind.
        each: maximum number of examples.

    Returns:
        image, lesion, x1, y1, x2, y2, verdict (hit, missed, false alarm), place (0, 1, ...): false alarms by
        falling score, the others in pseudo-random order. Hits have the box of the lesion.
    """
    limits = {lesion: np.inf if score is None else score for lesion, score in scores.items()}

    def reached(table: pd.DataFrame) -> pd.Series:
        return table["score"] >= table["lesion"].map(limits).astype(float)

    mixed = truth.assign(order=[derive(0, "verdict", place) for place in range(len(truth))])
    alarms = found[~found["hit"] & reached(found)]
    groups = {
        "hit": mixed[reached(mixed)],
        "missed": mixed[~reached(mixed)],
        "false alarm": alarms.assign(order=-alarms["score"]),
    }
    rows = pd.concat(
        [rows.assign(verdict=verdict) for verdict, rows in groups.items() if len(rows)] or [mixed]
    )
    rows = rows.sort_values("order", kind="stable").reindex(columns=["image", "lesion", *BOXES, "verdict"])
    rows = rows.assign(place=rows.groupby(["lesion", "verdict"]).cumcount())
    return rows[rows["place"] < each].reset_index(drop=True)


def verdict_sheet(chosen: pd.DataFrame, read: Callable[[int], np.ndarray], each: int, path: Path) -> None:
    """Write a sheet of cutouts around the examples, with a row for each kind of lesion and verdict.

    Args:
        chosen: examples from :func:`verdicts`.
        read: returns the image with a given number, uint8 RGB (H, W, 3), in whose pixels the boxes are;
            called once per image.
        each: cutouts in a row.
        path: PNG to write.
    """
    lines = [(lesion, verdict) for lesion in LESION_COLOURS for verdict in VERDICTS]
    with figure(path, 0.95 * each + 1.3, 0.98 * len(lines)) as drawn:
        grid = drawn.subplots(len(lines), each, squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, (lesion, verdict) in zip(grid[:, 0], lines, strict=True):
            axes.set_ylabel(f"{lesion} {verdict}", rotation=0, ha="right", va="center")
        for image in sorted(chosen["image"].unique().tolist()):
            picture, rows = read(image), chosen[chosen["image"] == image]
            for _, row in rows.iterrows():
                cutout(grid[lines.index((row["lesion"], row["verdict"])), row["place"]], picture, row)


def cutout(axes: Axes, picture: np.ndarray, row: pd.Series) -> None:
    """Draw one box (x1, y1, x2, y2) with its surroundings: three times its longer side, at least 48 px."""
    x1, y1, x2, y2 = (float(row[name]) for name in BOXES)
    half = round(max(x2 - x1, y2 - y1, SURROUND / 3) * 1.5)
    left, top = round((x1 + x2) / 2) - half, round((y1 + y2) / 2) - half
    geometry = CropGeometry(left, top, left + 2 * half, top + 2 * half, 96)
    axes.imshow(cut(picture, geometry))
    (x1, y1, x2, y2), colour = geometry.boxes_to_crop([[x1, y1, x2, y2]])[0], LESION_COLOURS[row["lesion"]]
    style = VERDICTS[row["verdict"]]
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.1, linestyle=style)
    )

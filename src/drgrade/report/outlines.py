"""Figures of the crop rules: their outlines drawn on the photographs, and their crops side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from drgrade.images.contrast import KEPT
from drgrade.images.crop import cut
from drgrade.images.geometry import CropGeometry
from drgrade.images.rules import RGBImage
from drgrade.report.plots import INK, LESION_COLOURS, figure
from drgrade.schema import LESION_NAMES

RULE_COLOURS = {"disc": "#4ade80", "o_O": "#60a5fa", "graham": "#b388ff", "clpi": "#fb923c"}
DISCS = ("graham", "clpi")
"""Rules that keep only a disc of the crop and blacken the rest."""
CIRCLES = {"disc": 0.5} | dict.fromkeys(DISCS, KEPT)
"""Rules drawn as a circle, with its radius as a fraction of the crop's side; ``o_O`` is drawn as a box."""
BESIDE = 70
"""Grey level outside the photograph, to tell it from the black around the field of view."""
FINER = 3
"""Supersampling factor: lines are drawn at this many times the final resolution, then averaged."""

Masks = Mapping[str, npt.NDArray[np.bool_]]


def outlined(picture: RGBImage, crops: Mapping[str, CropGeometry], masks: Masks, width: int) -> RGBImage:
    """Draw the outline of each rule's crop and the contours of the lesions on a photograph.

    Args:
        picture: uint8 RGB (H, W, 3) at full resolution.
        crops: crop geometry by rule, drawn in ``RULE_COLOURS``; ``disc`` is drawn as the circle inscribed in
            its square, ``graham`` and ``clpi`` as the disc they keep, ``o_O`` as its box.
        masks: (H, W) masks by kind of lesion, drawn in ``LESION_COLOURS``.
        width: width of the result in pixels; it includes crops that extend beyond the photograph.

    Returns:
        uint8 RGB (h, width, 3).
    """
    view, rows = _view(
        picture.shape[1], picture.shape[0], [crop.box for crop in crops.values()], FINER * width
    )
    drawn = np.ascontiguousarray(cut(picture, view))
    _grey_beside(drawn, view, picture.shape[1], picture.shape[0])
    for lesion, mask in masks.items():
        shrunk = view.mask_to_crop(mask).astype(np.uint8)
        contours, _ = cv2.findContours(shrunk, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, _rgb(LESION_COLOURS[lesion]), 1 + FINER // 2)
    for rule, crop in crops.items():
        x0, y0, x1, y1 = view.boxes_to_crop([crop.box])[0]
        if rule in CIRCLES:
            centre = round((x0 + x1) / 2), round((y0 + y1) / 2)
            axes = round(CIRCLES[rule] * (x1 - x0)), round(CIRCLES[rule] * (y1 - y0))
            circle = np.array(cv2.ellipse2Poly(centre, axes, 0, 0, 360, 1))
            cv2.polylines(drawn, [circle], True, _rgb(RULE_COLOURS[rule]), FINER)
        else:
            corners = (round(x0), round(y0)), (round(x1) - 1, round(y1) - 1)
            cv2.rectangle(drawn, *corners, _rgb(RULE_COLOURS[rule]), FINER)
    drawn = drawn[rows]
    small = width, max(1, round(len(drawn) / FINER))
    return cv2.resize(drawn, small, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def outline_sheet(tiles: Sequence[tuple[str, RGBImage]], columns: int, path: Path) -> None:
    """Write a grid of outlined photographs with titles and a legend of rules and lesions.

    Args:
        tiles: (title, image) pairs, images of equal width; the title may be empty.
        columns: images in a row.
        path: PNG to write.
    """
    lines = max(1, -(-len(tiles) // columns))
    width = 12 / columns
    tallest = max((picture.shape[0] / picture.shape[1] for _, picture in tiles), default=1)
    titles = 0.3 if any(title for title, _ in tiles) else 0.1
    with figure(path, 12, lines * ((width - 0.16) * tallest + titles) + 0.6) as drawn:
        _tile(drawn, tiles, lines, columns)
        lines_of = {rule: RULE_COLOURS[rule] for rule in RULE_COLOURS}
        lines_of |= {LESION_NAMES[lesion]: colour for lesion, colour in LESION_COLOURS.items()}
        keys = [Line2D([], [], color=colour, label=name, linewidth=2.5) for name, colour in lines_of.items()]
        drawn.legend(
            handles=keys, ncols=len(keys), loc="outside lower center", facecolor=INK, labelcolor="white"
        )


def rule_sheet(rows: Sequence[Mapping[str, RGBImage]], path: Path) -> None:
    """Write a grid of crops with a row for each photograph and a column for each rule.

    Args:
        rows: crops by rule for each photograph, with the same rules; the rule names are the column titles.
        path: PNG to write.
    """
    columns = list(rows[0])
    tiles = [(name if row is rows[0] else "", row[name]) for row in rows for name in columns]
    width = 12 / len(columns)
    with figure(path, 12, len(rows) * (width + 0.05) + 0.3) as drawn:
        _tile(drawn, tiles, len(rows), len(columns))


def _tile(drawn: Figure, tiles: Sequence[tuple[str, RGBImage]], lines: int, columns: int) -> None:
    places = list(drawn.subplots(lines, columns, squeeze=False).flat)
    for axes in places:
        axes.set_axis_off()
    for axes, (title, picture) in zip(places, tiles, strict=False):
        axes.imshow(picture, interpolation="antialiased")
        if title:
            axes.set_title(title, fontsize=9, pad=3)


def _view(
    width: int, height: int, boxes: Sequence[tuple[int, int, int, int]], side: int
) -> tuple[CropGeometry, slice]:
    """Return the square around photograph and boxes as a crop of ``side``, and its non-empty rows."""
    all_boxes = np.array([(0, 0, width, height), *boxes])
    x0, y0 = all_boxes[:, :2].min(axis=0).tolist()
    x1, y1 = all_boxes[:, 2:].max(axis=0).tolist()
    length = max(x1 - x0, y1 - y0)
    view = CropGeometry(x0, y0, x0 + length, y0 + length, side)
    return view, slice(0, max(1, round((y1 - y0) * view.scale)))


def _grey_beside(drawn: RGBImage, view: CropGeometry, width: int, height: int) -> None:
    x0, y0, x1, y1 = view.boxes_to_crop([[0, 0, width, height]])[0].round().astype(int)
    for beside in (np.s_[:y0], np.s_[y1:], np.s_[:, :x0], np.s_[:, x1:]):
        drawn[beside] = BESIDE


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue

"""Sheet of segmented photographs: drawn and predicted lesions side by side, with an enlarged spot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from drgrade.images.crop import cut
from drgrade.images.geometry import CropGeometry
from drgrade.images.rules import Box, RGBImage
from drgrade.report.plots import INK, LESION_COLOURS, figure
from drgrade.schema import LESION_NAMES

Masks = Mapping[str, npt.NDArray[np.bool_]]

CELL = 512
"""Side in pixels in which a view is drawn, about twice its side on the sheet."""
SPOT = 1 / 12
"""Side of the enlarged spot as a share of the crop box's longer side."""
DIM = 0.55
"""Brightness of the grey photograph under the lesions."""
SPREAD, MOST_GAIN = 110, 3.0
"""Grey levels over which the enlarged spot spreads, and the highest gain for that."""
TITLES = ("photograph", "drawn", "predicted")
WIDTH, ROW, LEGEND = 14.5, 2.5, 0.75
"""Width of the sheet, height of a row, and height of titles and legend together, in inches of 110 pixels."""


@dataclass(frozen=True)
class Example:
    """A photograph with its lesions.

    Attributes:
        name: its title.
        image: uint8 RGB (H, W, 3).
        drawn: (H, W) masks by kind, as drawn by an expert.
        predicted: (H, W) masks by kind.
        box: crop box in original pixels (x0, y0, x1, y1).
    """

    name: str
    image: RGBImage
    drawn: Masks
    predicted: Masks
    box: Box


def overlay_sheet(examples: Iterable[Example], path: Path) -> None:
    """Write a sheet with a row for each photograph.

    The columns are the photograph, its drawn and its predicted lesions in ``LESION_COLOURS``, for the whole
    crop box and for a spot in it, which is framed on the whole photograph: see :func:`rich_spot`.

    Args:
        examples: photographs; only one at a time is kept in memory at full resolution.
        path: PNG to write.
    """
    rows = [(example.name, _cells(example)) for example in examples]
    with figure(path, WIDTH, ROW * max(len(rows), 1) + LEGEND) as drawn:
        grid = drawn.subplots(max(len(rows), 1), 2 * len(TITLES), squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, title in zip(grid[0], [*TITLES, *(f"{title}, enlarged" for title in TITLES)], strict=True):
            axes.set_title(title)
        for line, (name, cells) in zip(grid, rows, strict=False):
            line[0].set_ylabel(name, fontsize=9)
            for axes, cell in zip(line, cells, strict=True):
                axes.imshow(cell, interpolation="antialiased")
        keys = [Patch(color=colour, label=LESION_NAMES[kind]) for kind, colour in LESION_COLOURS.items()]
        drawn.legend(
            handles=keys, ncols=len(keys), loc="outside lower center", facecolor=INK, labelcolor="white"
        )


def rich_spot(drawn: Masks, box: Box) -> Box:
    """Return the square with the most microaneurysm pixels (of all kinds, if there are none of that kind).

    Args:
        drawn: (H, W) masks by kind.
        box: crop box in original pixels; its longer side times :data:`SPOT` is the side of the square.

    Returns:
        (x0, y0, x1, y1) in original pixels; around the centre of the box if there are no lesions. It may
        reach outside the photograph.
    """
    half = max(1, round(max(box[2] - box[0], box[3] - box[1]) * SPOT / 2))
    x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    micro = drawn.get("MA")
    masks = [micro] if micro is not None and micro.any() else list(drawn.values())
    if any(mask.any() for mask in masks):
        lesion = np.any(masks, axis=0).astype(np.float32)
        near = cv2.boxFilter(lesion, -1, (2 * half + 1,) * 2, normalize=False, borderType=cv2.BORDER_CONSTANT)
        best = np.argwhere(near.round() == near.round().max())
        y, x = best[len(best) // 2].tolist()
    return x - half, y - half, x + half, y + half


def filled(pixels: RGBImage, masks: Masks, view: CropGeometry) -> RGBImage:
    """Draw lesions as coloured areas on a part of a photograph, in dark grey from its green channel.

    Args:
        pixels: uint8 RGB (size, size, 3), the photograph in ``view``.
        masks: (H, W) by kind, of the whole photograph. Where ``view`` shrinks it, lesions are drawn a pixel
            larger on each side, so that small ones can be seen; microaneurysms are drawn last.
        view: box and size.

    Returns:
        uint8 RGB (size, size, 3).
    """
    drawing = np.repeat((DIM * pixels[..., 1]).astype(np.uint8)[..., None], 3, axis=2)
    dot = np.ones((3, 3) if view.scale < 1 else (1, 1), np.uint8)
    for kind in reversed(LESION_COLOURS):
        if kind in masks:
            area = cv2.dilate(view.mask_to_crop(masks[kind]).astype(np.uint8), dot)
            drawing[area > 0] = np.round(np.multiply(255, to_rgb(LESION_COLOURS[kind])))
    return drawing


def contrasted(pixels: RGBImage) -> RGBImage:
    """Raise the contrast around the mean colour until the green channel covers :data:`SPREAD` levels."""
    low, high = np.percentile(pixels[..., 1], [1, 99])
    gain = min(max(SPREAD / max(high - low, 1), 1), MOST_GAIN)
    mean = pixels.mean(axis=(0, 1))
    return (mean + gain * (pixels - mean)).clip(0, 255).astype(np.uint8)


def _cells(example: Example) -> list[RGBImage]:
    """The six views of a row."""
    spot = rich_spot(example.drawn, example.box)
    whole, near = (CropGeometry(*_square(box), CELL) for box in (example.box, spot))
    photograph, enlarged = cut(example.image, whole), contrasted(cut(example.image, near))
    both = (example.drawn, example.predicted)
    cells = [photograph, *(filled(photograph, masks, whole) for masks in both)]
    cells += [enlarged, *(filled(enlarged, masks, near) for masks in both)]
    left, top, right, bottom = whole.boxes_to_crop([spot])[0].round().astype(int).tolist()
    cv2.rectangle(photograph, (left, top), (right, bottom), (255, 255, 255), 3)
    return cells


def _square(box: Box) -> Box:
    """The square around a box, with the same centre."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0)
    left, top = x0 - (side - (x1 - x0)) // 2, y0 - (side - (y1 - y0)) // 2
    return left, top, left + side, top + side

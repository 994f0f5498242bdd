"""Draw heat maps over photographs, with the outlines of annotated lesions."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.explain.score import Mask
from drgrade.images.rules import RGBImage

SIDE = 1024
"""Longest side of a drawing in pixels."""
OPACITY = 0.5
"""Opacity of the colours where the heat map is 1; where it is 0 the photograph is unchanged."""
OUTLINE = (255, 255, 255)
"""Colour of the outlines of lesions."""
LEVEL_LINE = (0, 0, 0)
"""Colour of the line around regions of a given heat."""


def overlay(
    image: RGBImage,
    heat: npt.NDArray[np.floating],
    contours: Mask | None = None,
    side: int = SIDE,
    level: float | None = None,
) -> RGBImage:
    """Blend a heat map into its photograph.

    Args:
        image: uint8 RGB (H, W, 3).
        heat: (H, W) in 0-1, in the pixels of ``image``.
        contours: (H, W) mask of lesions to outline in white.
        side: maximum length of the drawing's longer side in pixels.
        level: heat around whose regions, at least as hot, a black line is drawn.

    Returns:
        uint8 RGB (h, w, 3).

    """
    picture = shrunk(image, side).astype(np.float32)
    size = picture.shape[1], picture.shape[0]
    warmth = cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_AREA).clip(0, 1)
    colours = cv2.applyColorMap(np.round(255 * warmth).astype(np.uint8), cv2.COLORMAP_TURBO)
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    weight = OPACITY * warmth[..., None]
    drawing = np.round((1 - weight) * picture + weight * colours).astype(np.uint8)
    if level is not None:
        _outline(drawing, warmth >= level, LEVEL_LINE, thickness=2)
    if contours is not None:
        small = cv2.resize(contours.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        # partly covered pixels count, because a microaneurysm may be smaller than a pixel
        _outline(drawing, small > 0, OUTLINE, thickness=1)
    return drawing


def shrunk(image: RGBImage, side: int = SIDE) -> RGBImage:
    """Scale an image down, if necessary, until its longer side is at most ``side`` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def legend(top: int, level: float) -> RGBImage:
    """Draw the common colour scale as an overlay on grey, with the grades below it.

    Args:
        top: grade at which the heat is 1.
        level: heat around which overlays draw a line.

    Returns:
        uint8 RGB (480, 480, 3).
    """
    drawing = np.full((480, 480, 3), 255, np.uint8)
    grey, heat = np.full((60, 400, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 400), (60, 1))
    drawing[200:260, 40:440] = overlay(grey, heat, level=level)
    labels = [("grade", 40, 185), *((str(grade), 32 + 400 * grade // top, 290) for grade in range(top + 1))]
    for label, x, y in labels:
        cv2.putText(drawing, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 1, cv2.LINE_AA)
    return drawing


def contact_sheet(panels: Sequence[RGBImage], columns: int, cell: int = 480, gap: int = 8) -> RGBImage:
    """Arrange images of any size in a grid on white, each scaled to fit a square cell.

    Args:
        panels: uint8 RGB images (h, w, 3), row by row.
        columns: maximum number of images in a row.
        cell: side of a cell in pixels.
        gap: pixels between cells and around them.

    Returns:
        uint8 RGB (height, width, 3); a blank cell if there are no images.

    """
    columns = max(min(columns, len(panels)), 1)
    rows = max(-(-len(panels) // columns), 1)
    shape = rows * (cell + gap) + gap, columns * (cell + gap) + gap, 3
    sheet = np.full(shape, 255, np.uint8)
    for place, panel in enumerate(panels):
        scale = cell / max(panel.shape[:2])
        width, height = max(round(panel.shape[1] * scale), 1), max(round(panel.shape[0] * scale), 1)
        top = gap + place // columns * (cell + gap) + (cell - height) // 2
        left = gap + place % columns * (cell + gap) + (cell - width) // 2
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        sheet[top : top + height, left : left + width] = cv2.resize(panel, (width, height), interpolation=how)
    return sheet


def _outline(drawing: RGBImage, mask: Mask, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw the outlines of a mask's regions and of their holes into an image."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawing, outlines, -1, colour, thickness)

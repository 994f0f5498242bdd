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


def overlay(
    image: RGBImage, heat: npt.NDArray[np.floating], contours: Mask | None = None, side: int = SIDE
) -> RGBImage:
    """Blend a heat map into its photograph.

    Args:
        image: uint8 RGB (H, W, 3).
        heat: (H, W) in 0-1, in the pixels of ``image``.
        contours: (H, W) mask of lesions to outline in white.
        side: maximum length of the drawing's longer side in pixels.

    Returns:
        uint8 RGB (h, w, 3).

    """
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    warmth = cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_AREA).clip(0, 1)
    colours = cv2.applyColorMap(np.round(255 * warmth).astype(np.uint8), cv2.COLORMAP_TURBO)
    colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    weight = OPACITY * warmth[..., None]
    drawing = np.round((1 - weight) * picture + weight * colours).astype(np.uint8)
    if contours is not None:
        small = cv2.resize(contours.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        # partly covered pixels count, because a microaneurysm may be smaller than a pixel
        outlines, _ = cv2.findContours((small > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawing, outlines, -1, OUTLINE, 1)
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

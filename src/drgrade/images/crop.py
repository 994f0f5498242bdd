"""A photograph to a square crop: find the eye, cut, scale.

The photograph is decoded at a half, quarter or eighth of its resolution where the crop needs no more.
"""

from pathlib import Path

import cv2
import numpy as np

from drgrade import params
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import read_photograph, read_reduced
from drgrade.images.rules import Box, Picture, find_box

SMALLEST_EYE = 0.8
"""A photograph's eye is expected to be at least this share of its shorter side; else it is decoded again."""


def cut(picture: Picture, geometry: CropGeometry) -> Picture:
    """Resample the box of a picture to the crop, (size, size, 3); black where it reaches outside.

    Args:
        picture: uint8 RGB (H, W, 3), in the pixels the box is given in.
        geometry: box and size.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = geometry.box
    inside = picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    side = geometry.size
    if not inside.size:
        return np.zeros((side, side, 3), np.uint8)
    margins = max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)
    boxed = cv2.copyMakeBorder(inside, *margins, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    # area averaging is only meant for shrinking
    method = cv2.INTER_AREA if min(boxed.shape[:2]) >= side else cv2.INTER_LINEAR
    return cv2.resize(boxed, (side, side), interpolation=method).astype(np.uint8, copy=False)


def crop_photograph(path: Path, options: params.Crop) -> tuple[Picture, CropGeometry, str]:
    """Read, find the eye and cut one photograph.

    Returns:
        The crop (size, size, 3) uint8 RGB, its place in original pixels, and the rule that found it.

    Raises:
        ReadError: the photograph cannot be read.
    """
    exact = options.rule == "o_O"
    picture, factor = read_reduced(path, None if exact else options.size / SMALLEST_EYE)
    box, rule = find_box(picture, options.rule)
    if factor > 1 and min(box[2] - box[0], box[3] - box[1]) < options.size:
        picture, factor = read_photograph(path), 1
        box, rule = find_box(picture, options.rule)
    box = _shape(box, options.aspect, picture.shape[1], picture.shape[0])
    crop = cut(picture, CropGeometry(*box, options.size))
    x0, y0, x1, y1 = (edge * factor for edge in box)
    return crop, CropGeometry(x0, y0, x1, y1, options.size), rule


def _shape(box: Box, aspect: str, width: int, height: int) -> Box:
    """pad: grow the shorter side about the centre to a square; squash: keep to what the photograph shows."""
    x0, y0, x1, y1 = box
    if aspect == "squash":
        return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    side = max(x1 - x0, y1 - y0)
    x0 -= (side - (x1 - x0)) // 2
    y0 -= (side - (y1 - y0)) // 2
    return x0, y0, x0 + side, y0 + side

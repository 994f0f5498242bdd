"""Crop a photograph to a square: find the eye, cut, scale, and for two rules subtract the local brightness.

The photograph is decoded at a half, quarter or eighth of its resolution if that suffices for the crop.
"""

from pathlib import Path

import cv2
import numpy as np

from drgrade import params
from drgrade.images.contrast import GREY, without_local_mean, without_local_median
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import PhotographFile, opened
from drgrade.images.rules import Box, RGBImage, find_box

SMALLEST_EYE = 0.8
"""Expected minimum size of the eye as a share of the shorter side; smaller ones are decoded again."""


def cut(picture: RGBImage, geometry: CropGeometry, border: int = cv2.BORDER_CONSTANT) -> RGBImage:
    """Resample the box of an image to the crop (size, size, 3); black outside the image.

    Args:
        picture: uint8 RGB (H, W, 3); the box is in its pixels.
        geometry: box and size.
        border: OpenCV's border mode for pixels outside the image.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = geometry.box
    inside = picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    side = geometry.size
    if not inside.size:
        return np.zeros((side, side, 3), np.uint8)
    margins = max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)
    boxed = inside
    if any(margins):
        boxed = cv2.copyMakeBorder(inside, *margins, border, value=(0, 0, 0)).astype(np.uint8, copy=False)
    # area averaging is for shrinking only
    method = cv2.INTER_AREA if min(boxed.shape[:2]) >= side else cv2.INTER_LINEAR
    return cv2.resize(boxed, (side, side), interpolation=method).astype(np.uint8, copy=False)


def crop_photograph(
    photograph: Path | PhotographFile, options: params.Crop
) -> tuple[RGBImage, CropGeometry, str]:
    """Read one photograph, find the eye and crop it.

    Args:
        photograph: its path, or its file where something else reads it too.
        options: rule, size and aspect; ``graham`` and ``clpi`` ignore aspect and keep the eye's shape.

    Returns:
        The crop, uint8 RGB (size, size, 3), its box in original pixels, and the rule that found it.

    Raises:
        ReadError: the photograph cannot be read.
    """
    size, file = options.size, opened(photograph)
    if options.rule == "clpi":
        picture, factor = file.reduced(size)
        crop, geometry = centre_square_crop(picture, size, factor)
        return without_local_median(crop), geometry, "clpi"
    exact = options.rule == "o_O"
    picture, factor = file.reduced(None if exact else size / SMALLEST_EYE)
    box, rule = find_box(picture, options.rule)
    if factor > 1 and min(box[2] - box[0], box[3] - box[1]) < size:
        picture, factor = file.reduced(None)
        box, rule = find_box(picture, options.rule)
    aspect = "pad" if options.rule == "graham" else options.aspect
    box = _shape(box, aspect, picture.shape[1], picture.shape[0])
    place = CropGeometry(*box, size)
    crop = _graham_crop(picture, place) if options.rule == "graham" else cut(picture, place)
    x0, y0, x1, y1 = (edge * factor for edge in box)
    return crop, CropGeometry(x0, y0, x1, y1, size), rule


def centre_square_crop(picture: RGBImage, size: int, factor: int = 1) -> tuple[RGBImage, CropGeometry]:
    """Scale the shorter side to ``size``, bicubic, and cut the centre square, as in CLPI's released code.

    Args:
        picture: uint8 RGB (H, W, 3).
        size: side of the crop in pixels.
        factor: factor by which the image is smaller than its photograph.

    Returns:
        The crop, uint8 RGB (size, size, 3), bit for bit the published one if ``factor`` is 1, and its box in
        original pixels, with edges accurate to half a pixel.
    """
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    scaled = round(width * scale), round(height * scale)
    middle = cv2.resize(picture, scaled, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    left, top = (round((side - size) / 2) for side in scaled)  # rounds half to even, as published
    x0, x1 = (round(edge * width * factor / scaled[0]) for edge in (left, left + size))
    y0, y1 = (round(edge * height * factor / scaled[1]) for edge in (top, top + size))
    return middle[top : top + size, left : left + size], CropGeometry(x0, y0, x1, y1, size)


def _graham_crop(picture: RGBImage, geometry: CropGeometry) -> RGBImage:
    """Cut and subtract the local mean; grey outside the photograph, without a dark edge."""
    crop = without_local_mean(cut(picture, geometry, cv2.BORDER_REFLECT_101))
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = geometry.boxes_to_crop([[0, 0, width, height]])[0].round().astype(int).clip(0)
    for outside in (np.s_[:y0], np.s_[y1:], np.s_[:, :x0], np.s_[:, x1:]):
        crop[outside] = GREY
    return crop


def _shape(box: Box, aspect: str, width: int, height: int) -> Box:
    """pad: extend the shorter side to a square about the centre; squash: clip the box to the photograph."""
    x0, y0, x1, y1 = box
    if aspect == "squash":
        return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    side = max(x1 - x0, y1 - y0)
    x0 -= (side - (x1 - x0)) // 2
    y0 -= (side - (y1 - y0)) // 2
    return x0, y0, x0 + side, y0 + side

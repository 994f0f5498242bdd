"""Gradability of a photograph: four simple measures of the field of view, each 0 (ungradable) to 1 (good).

They were calibrated on the 177 graded photographs of IDRiD and on blurred, darkened and hazed copies of them
(``benchmarks/quality.py``): an ordinary IDRiD photograph scores 0.9 or more. They are computed from the
image, unlike the readers' labels in :data:`drgrade.schema.INDEX`, ``quality_label``.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from drgrade.images.rules import Circle, RGBImage

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

DIAMETER = 320
"""The field of view is scaled to this diameter in pixels, so that values are comparable between cameras."""
RIM = 0.92
"""Share of the radius that is measured; further out, illumination falls off and the rim causes edges."""
BLURRED, SHARP = 0.06, 0.18
"""Ratio of detail at 1-2 pixels to that at 2-16, in an unusably blurred and in a sufficiently sharp image."""
DIM = 30.0
"""Mean green level (0-255) from which an image is bright enough."""
UNLIT, GLARING = 40, 245
"""A pixel is underexposed if no channel is above the first, overexposed if green is above the second."""
CLEAR = 0.06
"""Local contrast (standard deviation over mean, structures up to 16 pixels) of a photograph without haze."""


WHITE = 235
"""A pixel with no channel below this belongs to a white background."""
RED_OVER_GREEN, GREEN_OVER_BLUE = 1.1, 0.9
"""Minimum ratios of the median channels of a retina; those of IDRiD's photographs are larger (a test)."""
LEAST_FIELD = 0.25
"""Minimum share of an image without a visible rim that the retina must fill."""


class Quality(NamedTuple):
    """Measures of one photograph, each 0-1.

    Attributes:
        fov: share of the field of view that lies inside the image; None if its rim was not found, 0 if there
            is no retina either.
        sharpness: ratio of fine to coarser detail.
        exposure: sufficient brightness without under- or overexposed parts.
        contrast: local contrast of vessels and lesions; low in haze (cataract, small pupil).
    """

    fov: float | None
    sharpness: float
    exposure: float
    contrast: float

    @property
    def score(self) -> float:
        """Gradability: the minimum of the known measures."""
        return min(value for value in self if value is not None)


def measure(picture: RGBImage, circle: Circle | None) -> Quality:
    """Measure a photograph inside its field of view.

    Args:
        picture: uint8 RGB (H, W, 3), at any resolution; preferably at least ``DIAMETER`` pixels per eye.
        circle: the field of view in pixels of ``picture``, from ``fit_disc``, or None.

    Returns:
        The four measures. Without a circle, all pixels that are neither dark nor white are measured if they
        have the colours of a retina (a crop inside the field of view, an ellipse, a white background); else
        all measures are 0.
    """
    share: float | None
    if circle is not None:
        eye, inside, share = _field_of_view(picture, circle)
    elif looks_like_retina(picture, circle):
        height, width = picture.shape[:2]
        everything = Circle(width / 2, height / 2, float(np.hypot(width, height)) / 2 / RIM)
        eye, inside, _ = _field_of_view(picture, everything)
        inside, share = inside & _field(eye), None
    else:
        return Quality(0.0, 0.0, 0.0, 0.0)
    if not inside.any():
        return Quality(share, 0.0, 0.0, 0.0)
    green = eye[..., 1].astype(np.float32)
    smooth = {sigma: _blur_inside(green, inside, sigma) for sigma in (1, 2, 16)}
    detail, coarse = smooth[1] - smooth[2], smooth[2] - smooth[16]
    ratio = float(detail[inside].std()) / max(float(coarse[inside].std()), 1e-3)
    mean = float(green[inside].mean())
    useless = (eye.max(axis=2) < UNLIT) | (green > GLARING)
    local = float((smooth[1] - smooth[16])[inside].std()) / max(mean, 1.0)
    return Quality(
        fov=share,
        sharpness=_unit((ratio - BLURRED) / (SHARP - BLURRED)),
        exposure=_unit(mean / DIM) * (1 - float(useless[inside].mean())),
        contrast=_unit(local / CLEAR),
    )


def looks_like_retina(picture: RGBImage, circle: Circle | None) -> bool:
    """Whether an image shows a retina: it has a field of view, or its bright pixels have a retina's colours.

    Args:
        picture: uint8 RGB (H, W, 3), at any resolution.
        circle: the field of view from ``fit_disc``, or None.
    """
    if circle is not None:
        return True
    field = _field(picture)
    if field.mean() < LEAST_FIELD:
        return False
    red, green, blue = np.median(picture[field], axis=0)
    return bool(red > RED_OVER_GREEN * green and green > GREEN_OVER_BLUE * blue)


def _field(picture: RGBImage) -> Mask:
    """Mask of pixels that are neither dark nor white."""
    return (picture.max(axis=2) > UNLIT) & (picture.min(axis=2) < WHITE)


def _unit(value: float) -> float:
    return float(np.clip(value, 0.0, 1.0))


def _field_of_view(picture: RGBImage, circle: Circle) -> tuple[RGBImage, Mask, float]:
    """Eye scaled to ``DIAMETER``, mask of pixels to measure, and share of the disc inside the image."""
    scale = DIAMETER / (2 * circle.radius)
    height, width = picture.shape[:2]
    x0, x1 = round(circle.x - circle.radius), round(circle.x + circle.radius)
    y0, y1 = round(circle.y - circle.radius), round(circle.y + circle.radius)
    cut = picture[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    margins = max(-y0, 0), max(y1 - height, 0), max(-x0, 0), max(x1 - width, 0)
    visible = cv2.copyMakeBorder(
        np.full(cut.shape[:2], 255, np.uint8), *margins, cv2.BORDER_CONSTANT, value=(0,)
    )
    square = cv2.copyMakeBorder(cut, *margins, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    eye = cv2.resize(square, (DIAMETER, DIAMETER), interpolation=method)
    seen = cv2.resize(visible, (DIAMETER, DIAMETER), interpolation=cv2.INTER_NEAREST) > 0
    rows, columns = np.ogrid[:DIAMETER, :DIAMETER]
    away = np.hypot(columns + 0.5 - DIAMETER / 2, rows + 0.5 - DIAMETER / 2)
    share = float(seen[away < DIAMETER / 2].mean())
    return eye.astype(np.uint8, copy=False), seen & (away < RIM * DIAMETER / 2), share


def _blur_inside(green: Floats, inside: Mask, sigma: float) -> Floats:
    """Gaussian mean over the pixels of the mask only, without influence of the dark background."""
    weight = inside.astype(np.float32)
    stacked = np.dstack([green * weight, weight])
    shrink = max(int(sigma) // 4, 1)  # wide blurs do not need full resolution
    if shrink > 1:
        side = DIAMETER // shrink
        stacked = cv2.resize(stacked, (side, side), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(stacked, (0, 0), sigma / shrink)
    mean = blurred[..., 0] / np.maximum(blurred[..., 1], 1e-3)
    return cv2.resize(mean, (DIAMETER, DIAMETER), interpolation=cv2.INTER_LINEAR).astype(np.float32)

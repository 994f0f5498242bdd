"""Corruptions of a crop: what a camera, its settings or a file format can do to a photograph.

The protocol follows Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, ICLR 2019: each corruption has five severities, and a model that never saw a corrupted
image in training is tested on each. The strengths are not theirs, which were chosen for natural images of
224 px: here a microaneurysm of 0.5 % of the retina's width has to get lost on the way from 1 to 5.

Lengths are relative to the crop's side, so that crops of 128 and 512 px suffer alike. The exception is
``jpeg``: its blocks have 8 pixels whatever the side, so smaller crops lose more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from drgrade.images.rules import RGBImage
from drgrade.images.store import Images, Pixels

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: function of an image, uint8 RGB (H, W, 3), and a strength; returns a new image of this shape.
        strengths: strength at severity 1 to 5.
        unit: what the strength means.
    """

    apply: Callable[[RGBImage, float], RGBImage]
    strengths: tuple[float, float, float, float, float]
    unit: str


def _blur(picture: RGBImage, sigma: float) -> RGBImage:
    return _as_uint8(cv2.GaussianBlur(picture, (0, 0), sigma * max(picture.shape[:2])))


def _jpeg(picture: RGBImage, quality: float) -> RGBImage:
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    _, stream = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return _as_uint8(cv2.imdecode(stream, cv2.IMREAD_COLOR_RGB))


def _brightness(picture: RGBImage, gain: float) -> RGBImage:
    return _multiplied(picture, (gain, gain, gain))


def _colour_shift(picture: RGBImage, share: float) -> RGBImage:
    return _multiplied(picture, (1 - share, 1.0, 1 + share))


def _resolution(picture: RGBImage, share: float) -> RGBImage:
    height, width = picture.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return _as_uint8(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def _multiplied(picture: RGBImage, gains: tuple[float, float, float]) -> RGBImage:
    """Multiply each channel, so that the black border stays black."""
    return _as_uint8(np.clip(np.rint(picture * np.array(gains, np.float32)), 0, 255))


def _as_uint8(values: Any) -> RGBImage:
    return np.asarray(values).astype(np.uint8, copy=False)


CORRUPTIONS: Mapping[str, Corruption] = {
    "blur": Corruption(
        _blur, (0.004, 0.007, 0.010, 0.015, 0.020), "standard deviation of a Gaussian, share of the side"
    ),
    "jpeg": Corruption(_jpeg, (40, 25, 15, 10, 5), "JPEG quality, 1-100"),
    "darker": Corruption(_brightness, (0.80, 0.65, 0.50, 0.35, 0.25), "factor of all channels"),
    "brighter": Corruption(_brightness, (1.15, 1.30, 1.50, 1.75, 2.00), "factor of all channels"),
    "colour_shift": Corruption(
        _colour_shift, (0.10, 0.20, 0.30, 0.40, 0.50), "share by which red falls and blue rises"
    ),
    "resolution": Corruption(
        _resolution, (0.70, 0.50, 0.35, 0.25, 0.15), "share of the side in pixels that is kept"
    ),
}
"""All corruptions by name, with their strengths."""


def corrupted(picture: RGBImage, name: str, severity: int) -> RGBImage:
    """Return a corrupted copy of an image; equal arguments give identical pixels.

    Args:
        picture: uint8 RGB (H, W, 3).
        name: one of :data:`CORRUPTIONS`.
        severity: 1 to 5; 0 returns the image as it is.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in (0, *SEVERITIES):
        raise ValueError(f"corruption {name!r} at severity {severity}: choose {', '.join(CORRUPTIONS)}; 0-5")
    if severity == 0:
        return picture
    corruption = CORRUPTIONS[name]
    return corruption.apply(picture, corruption.strengths[severity - 1])


class CorruptedImages:
    """Images that are corrupted when they are read; no copy of them is kept.

    Args:
        images: uint8 RGB (N, S, S, 3).
        name: one of :data:`CORRUPTIONS`.
        severity: 0 to 5.
    """

    def __init__(self, images: Images, name: str, severity: int) -> None:
        self.shape = images.shape
        self._images, self._name, self._severity = images, name, severity

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Any) -> Pixels:
        """Return one or several corrupted images, indexed as in NumPy."""
        read = np.asarray(self._images[rows])
        if read.ndim == 3:
            return corrupted(read, self._name, self._severity)
        found = np.empty_like(read)
        for place, picture in enumerate(read):
            found[place] = corrupted(picture, self._name, self._severity)
        return found

"""Perceptual hash of a photograph: 256 bits, robust to changes of encoding, size, exposure and margin.

The same photograph may exist in several files; a SHA-256 finds identical files only. Distances of copies and
of different photographs are given in docs/splits.md.
"""

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from drgrade.images.rules import Circle, RGBImage

SIDE = 128
"""Side of the square to which the field of view is scaled, in pixels; twice the resolution of the hash."""
BITS = 256
DARK = 12
"""Pixels whose brightest channel is below this (0-255) are background, such as margins."""
SMOOTH = 10.0
"""Sigma of the Gaussian local mean that is subtracted, in pixels of the square."""
FLAT = 0.25
"""Images with a lower standard deviation (in grey values) are noise without content."""

Floats = npt.NDArray[np.float32]

_rows, _columns = np.mgrid[:SIDE, :SIDE]
_RADIUS = np.hypot(_columns - (SIDE - 1) / 2, _rows - (SIDE - 1) / 2) / (0.475 * SIDE)
# Zero at the rim, whose outline is the same in every photograph and fitted to within a pixel only.
WINDOW: Floats = np.sqrt(0.5 + 0.5 * np.cos(np.pi * _RADIUS.clip(0, 1))).astype(np.float32)


def perceptual_hash(picture: RGBImage, circle: Circle | None) -> str | None:
    """256-bit perceptual hash of the field of view, as 64 hexadecimal digits; copies differ in few bits.

    ImageHash's ``phash`` (the 16 x 16 lowest cosine frequencies compared with their median) of the green
    channel after subtraction of the local mean, weighted by a window. Mirrored photographs are not copies.

    Args:
        picture: uint8 RGB (H, W, 3), for example from ``read_reduced(path, 384)``.
        circle: field of view in pixels of ``picture`` (``fit_disc``); None: the whole image.

    Returns:
        The hash; None for an image without structure (black, overexposed), which cannot be compared.
    """
    relief = _relief(_field(picture, circle))
    spread = float(relief.std())
    if spread < FLAT:
        return None
    grey = np.clip(128 + relief * (32 / spread), 0, 255).astype(np.uint8)
    return str(imagehash.phash(Image.fromarray(grey), hash_size=16))


def distance(a: str, b: str) -> int:
    """Hamming distance of two hashes, 0-256 bits.

    >>> distance("0" * 64, "0" * 63 + "3")
    2
    """
    return (int(a, 16) ^ int(b, 16)).bit_count()


def _field(picture: RGBImage, circle: Circle | None) -> RGBImage:
    """The circle's bounding square, or the whole image, as uint8 RGB (SIDE, SIDE, 3); black outside."""
    if circle is None:
        return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    scale = SIDE / (2 * circle.radius)
    shrink = round(1 / scale)
    if shrink > 1:  # avoid aliasing in the warp: average first
        picture = cv2.blur(picture, (shrink, shrink)).astype(np.uint8, copy=False)
    # from pixel-edge coordinates of the circle to OpenCV's pixel-centre coordinates
    shift = [SIDE / 2 - scale * (at - 0.5) - 0.5 for at in (circle.x, circle.y)]
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE)).astype(np.uint8, copy=False)


def _relief(field: RGBImage) -> Floats:
    """Green channel minus its local mean, windowed: float32 (SIDE, SIDE), 0 in the background."""
    green = field[..., 1].astype(np.float32)
    retina = (field.max(axis=2) >= DARK).astype(np.float32)
    share = cv2.GaussianBlur(retina, (0, 0), SMOOTH) + 1e-3
    mean = cv2.GaussianBlur(green * retina, (0, 0), SMOOTH) / share
    return np.asarray((green - mean) * retina * WINDOW, np.float32)

"""Convert lesion masks to boxes, as published (parity) or corrected.

Parity follows the code of Huang et al., MICCAI 2021: a box for each outer contour of any size, enlarged by
one pixel.
"""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from drgrade.errors import UserError
from drgrade.faults import of_machine

FORMATS = ("TIFF", "PNG", "GIF", "BMP", "JPEG", "WEBP")
"""Formats that are tried. Pillow knows many more, and starts Ghostscript for one of them."""
CLASS_NUMBERS = 16
"""Grey values up to this are not brightness but class numbers, such as 0 and 1."""
MOST_LESION = 0.5
"""Masks with a larger share of lesion pixels are refused; those of IDRiD are well below (a test)."""


def read_mask(path: Path) -> np.ndarray:
    """Read a lesion mask in any of the common encodings.

    Supported: 8- and 16-bit grey, values 0 and 1, palettes (IDRiD's 1-bit TIFF), colour images, and lesions
    on a transparent background. A pixel belongs to a lesion if its luminance is above 1 of 255, as published
    (lesions are red in IDRiD, luminance 76). A non-blank mask contains a lesion or is refused.

    Returns:
        (H, W) bool.

    Raises:
        UserError: the file is not a readable image, contains several classes, or seems to be inverted.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            lesion = _opaque(image) if _has_alpha(image) else _bright(_grey(image, path), path)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and of_machine(error):
            raise
        raise UserError(f"{path}: not a readable lesion mask ({error}); fetch it again") from None
    if lesion.mean() > MOST_LESION:
        raise UserError(
            f"{path}: {lesion.mean():.0%} of the mask is lesion; if it is inverted, write lesions as 255 on 0"
        )
    return lesion


def _has_alpha(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return False
    low, high = image.convert("RGBA").getchannel("A").getextrema()
    return low != high


def _opaque(image: Image.Image) -> np.ndarray:
    """Lesions on a transparent background: opaque pixels; only those that are not black, if there are any."""
    pixels = image.convert("RGBA")
    opaque = np.asarray(pixels.getchannel("A")) > 127
    drawn = opaque & (np.asarray(pixels.convert("RGB").convert("L")) > 1)
    return drawn if drawn.any() else opaque


def _grey(image: Image.Image, path: Path) -> np.ndarray:
    """Grey values of the file, or luminance of its colours."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;"):
        return np.asarray(image)
    luminance = np.asarray(image.convert("RGB").convert("L"))
    if image.mode == "P":
        numbers = np.asarray(image)
        used = np.flatnonzero(image.histogram()[:256])
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        colours = palette[used[used < len(palette)]]
        if 2 < len(used) <= CLASS_NUMBERS and (colours.max(axis=1) != colours.min(axis=1)).sum() > 1:
            raise UserError(_several_classes(path, used.tolist()))
        if luminance.max() <= 1 and len(used) > 1:  # a palette without visible colours
            return numbers
    return luminance


def _bright(values: np.ndarray, path: Path) -> np.ndarray:
    """Pixels whose grey value means a lesion."""
    highest = values.max(initial=0)
    if highest > CLASS_NUMBERS:
        return values > (1 if highest <= 255 else 257)
    numbers = np.unique(values[values > 0]).tolist()
    if len(numbers) > 1:
        raise UserError(_several_classes(path, numbers))
    return values > 0


def _several_classes(path: Path, numbers: list[int]) -> str:
    listed = ", ".join(f"{number:g}" for number in numbers)
    return f"{path}: holds the classes {listed}; write one mask a kind of lesion, with lesions as 255 on 0"


def mask_boxes(
    mask: np.ndarray,
    mode: Literal["corrected", "parity"] = "corrected",
    min_area: int = 1,
    merge_distance: int = 0,
) -> np.ndarray:
    """Boxes of the lesions in a mask; see :func:`mask_lesions`."""
    return mask_lesions(mask, mode, min_area, merge_distance)[0]


def mask_lesions(
    mask: np.ndarray,
    mode: Literal["corrected", "parity"] = "corrected",
    min_area: int = 1,
    merge_distance: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the lesions in a mask: their boxes and their pixels.

    Args:
        mask: (H, W) bool.
        mode: ``parity`` gives one box for each outer contour, from a pixel before its first to a pixel after
            its last (x - 1, y - 1, x + w, y + h), so it may start at -1; single pixels count. ``corrected``
            gives exact half-open boxes.
        min_area: lesions of fewer mask pixels are dropped (corrected mode).
        merge_distance: fragments with fewer background pixels than this between them, along both axes, are
            one lesion (corrected mode); 0 and 1 give plain 8-connected components.

    Returns:
        Boxes (n, 4) int x1, y1, x2, y2 in mask pixels, sorted by y1, then x1; and a label map (H, W) int32:
        1 + row of the lesion's box at its pixels, 0 elsewhere.
    """
    find = _contours if mode == "parity" else _components
    boxes, labels, own = find(mask, min_area, merge_distance)
    order = np.lexsort(boxes.T[[3, 2, 0, 1]])
    rows = np.zeros(labels.max(initial=0) + 1, np.int32)
    rows[own[order]] = np.arange(1, len(order) + 1)
    return boxes[order], np.where(mask, rows[labels], 0)


def _contours(mask: np.ndarray, *_: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, a label map, and the label of each box."""
    pixels = mask.astype(np.uint8)
    contours, _hierarchy = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    rects = np.array([cv2.boundingRect(contour) for contour in contours], dtype=int).reshape(-1, 4)
    _count, labels = cv2.connectedComponents(pixels, connectivity=8)
    first = np.array([contour[0, 0] for contour in contours], dtype=int).reshape(-1, 2)
    boxes = np.concatenate([rects[:, :2] - 1, rects[:, :2] + rects[:, 2:]], axis=1)
    return boxes, labels, labels[first[:, 1], first[:, 0]]


def _components(
    mask: np.ndarray, min_area: int, merge_distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    joined: np.ndarray = mask.astype(np.uint8)
    if merge_distance > 1:
        # Two pixels at distance d along an axis touch after dilation with a square of side m if and only if
        # d <= m, that is with fewer than m background pixels between them.
        joined = cv2.dilate(joined, np.ones((merge_distance, merge_distance), np.uint8))
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    ys, xs = np.nonzero(mask)
    owner = labels[ys, xs].astype(int)
    low = np.full((count, 2), max(mask.shape), dtype=int)
    high = np.zeros((count, 2), dtype=int)
    points = np.stack([xs, ys], axis=1)
    np.minimum.at(low, owner, points)
    np.maximum.at(high, owner, points + 1)
    own = np.flatnonzero(np.bincount(owner, minlength=count) >= max(min_area, 1))
    return np.concatenate([low, high], axis=1)[own], labels, own


def run_lengths(mask: np.ndarray, origin: tuple[int, int], shape: tuple[int, int]) -> list[int]:
    """COCO's uncompressed run-length encoding of a mask (h, w) bool at ``origin`` (x, y) in an image.

    Args:
        mask: (h, w); the image is empty outside it.
        origin: left and top pixel of the mask.
        shape: shape (H, W) of the image.

    Returns:
        Run lengths in column-major order, background and lesion alternating, starting with background.
    """
    xs, ys = np.nonzero(mask.T)
    place = (xs + origin[0]) * shape[0] + ys + origin[1]
    starts = place[np.diff(place, prepend=-2) != 1]
    ends = place[np.diff(place, append=place[-1:] + 2) != 1] + 1
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=shape[0] * shape[1]).tolist()
    return counts if counts[-1] else counts[:-1]

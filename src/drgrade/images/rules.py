"""Rules that find the eye in a photograph: two published ones, and a circle fit to the field of view.

Boxes are (x0, y0, x1, y1), half-open, in pixels of the given image. ``disc`` and ``graham`` boxes are
squares that may extend outside the image; ``o_O`` boxes lie inside and are rarely square.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Box = tuple[int, int, int, int]
RGBImage = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

WORKING_SIDE = 384
"""The circle is fitted in a copy of the image with a longer side of about this many pixels."""
LEVELS = (0.25, 0.12, 0.06, 0.4)
"""Edge thresholds between background (0) and typical eye (1), tried in turn: low for dim rims."""
TOLERANCE = 1.5
"""Edge points this close to a circle support it, in working pixels."""
MIN_SUPPORT = 0.6
"""A circle is accepted if at least this share of its visible outline is an edge with dark outside."""
MIN_OUTLINE = 0.45
"""It must also contain at least this share of the bright region's outline, which excludes ellipses and, by a
test, no real photograph of IDRiD."""
CLEAR_SUPPORT = 0.95
"""Further thresholds are not tried once a circle has this support."""
ABSURD = 0.2
"""graham's circle is rejected if radius or centre differ from the fitted circle by this many fitted radii."""
BAND = 256
"""Rows blurred at a time, to save the memory of a whole blurred copy."""


def find_box(picture: RGBImage, rule: str) -> tuple[Box, str]:
    """Find the box of the field of view.

    Args:
        picture: uint8 RGB (H, W, 3).
        rule: ``disc``, ``o_O`` or ``graham``.

    Returns:
        The box, and the name of the rule, with the suffix ``:fallback_disc``, ``:fallback_o_O`` or
        ``:fallback_square`` if the rule found nothing credible and a fallback was used.

    Raises:
        ValueError: ``rule`` is not known.
    """
    if rule not in FINDERS:
        raise ValueError(f"crop rule {rule!r} finds no box; those that do are {', '.join(FINDERS)}")
    for finder in (rule, *FALLBACKS[rule]):
        box = FINDERS[finder](picture)
        if box is not None:
            return box, rule if finder == rule else f"{rule}:fallback_{finder}"
    height, width = picture.shape[:2]
    return centre_square(width, height), f"{rule}:fallback_square"


def foreground_box(picture: RGBImage) -> Box | None:
    """Tight box of pixels brighter than both side strips, or None: the rule of o_O, bit for bit.

    Kaggle DR 2015 second place, also used in lesion-based contrastive learning. None if the image is not
    wider than 1.2 times its height, if no pixel is bright enough, or if the box is small.

    Args:
        picture: uint8 RGB (H, W, 3), decoded at full resolution.
    """
    height, width = picture.shape[:2]
    if not width > 1.2 * height or width < 32:  # narrower images have no left strip
        return None
    left, right = width // 32, -(-width // 32)  # one column wider on the right, as published
    background = np.maximum(
        _blur(picture[:, : left + 2])[:, :left].max(axis=(0, 1)),
        _blur(picture[:, width - right - 2 :])[:, 2:].max(axis=(0, 1)),
    )
    in_column, in_row = np.zeros(width, bool), np.zeros(height, bool)
    for top in range(0, height, BAND):
        start, stop = max(top - 2, 0), min(top + BAND, height)
        blurred = _blur(picture[start : stop + 2])[top - start :][: stop - top]
        above = cv2.subtract(blurred, background.astype(float) + 10)  # saturates at 0, which is background
        in_column |= cv2.reduce(above, 0, cv2.REDUCE_MAX).any(axis=(0, 2))
        in_row[top:stop] = cv2.reduce(above, 1, cv2.REDUCE_MAX).any(axis=(1, 2))
    columns, rows = np.flatnonzero(in_column), np.flatnonzero(in_row)
    if not len(columns):
        return None
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    if x1 - x0 < 0.8 * height or y1 - y0 < 0.8 * height:
        return None
    return x0, y0, x1, y1


def _blur(picture: RGBImage) -> RGBImage:
    """Pillow's ``ImageFilter.BLUR``, five times faster: mean of a 5x5 window's rim, the frame unchanged."""
    rim = np.full((5, 5), 1 / 16)
    rim[1:4, 1:4] = 0
    blurred = cv2.filter2D(picture, -1, rim, delta=1 / 64)  # delta: halves round up, as in Pillow
    for frame in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        blurred[frame] = picture[frame]
    return blurred.astype(np.uint8, copy=False)


def centre_square(width: int, height: int) -> Box:
    """The centre square as in o_O: a pixel too wide for odd margins; the whole image in portrait format."""
    margin = (width - height) // 2
    return max(margin, 0), 0, min(width - margin, width), height


def middle_row_box(picture: RGBImage) -> Box | None:
    """Square about the image centre, as wide as the eye in the middle row, or None: the rule of graham.

    Kaggle DR 2015 first place (Graham, "Kaggle diabetic retinopathy detection competition report", 2015): the
    radius is half the number of pixels of the middle row, channels summed, above a tenth of their mean. None,
    not part of the publication, if this is close to zero or contradicts the fitted circle.

    Args:
        picture: uint8 RGB (H, W, 3), at any resolution.
    """
    height, width = picture.shape[:2]
    row = picture[height // 2].sum(axis=1, dtype=int)
    across = int((row > row.mean() / 10).sum())
    if across < min(height, width) / 4:
        return None
    circle = fit_disc(picture)
    if circle is not None:
        away = np.hypot(width / 2 - circle.x, height / 2 - circle.y)
        if max(abs(across / 2 - circle.radius), away) > ABSURD * circle.radius:
            return None
    x0, y0 = (width - across) // 2, (height - across) // 2
    return x0, y0, x0 + across, y0 + across


def disc_box(picture: RGBImage) -> Box | None:
    """Smallest integer square around the fitted circle, centred on it to half a pixel, or None.

    Args:
        picture: uint8 RGB (H, W, 3), at any resolution.
    """
    circle = fit_disc(picture)
    if circle is None:
        return None
    side = max(int(np.ceil(2 * circle.radius)), 2)
    x0, y0 = round(circle.x - side / 2), round(circle.y - side / 2)
    return x0, y0, x0 + side, y0 + side


FINDERS: dict[str, Callable[[RGBImage], Box | None]] = {
    "disc": disc_box,
    "o_O": foreground_box,
    "graham": middle_row_box,
}
FALLBACKS = {"disc": ("o_O",), "o_O": (), "graham": ("disc",)}


class Circle(NamedTuple):
    """A circle in pixel-edge coordinates."""

    x: float
    y: float
    radius: float


def fit_disc(picture: RGBImage) -> Circle | None:
    """Fit a circle to the field of view; None if there is no credible one.

    Works on a small copy. The region brighter than the corners is outlined at several thresholds; a circle is
    fitted to each outline by random sampling (RANSAC), robust to cut-off tops, notches, labels and dark
    quadrants, and scored by the share of its visible outline that is an edge with dark outside. Ellipses, as
    from ultra-wide-field cameras, give None.

    Args:
        picture: uint8 RGB (H, W, 3), at any resolution.
    """
    height, width = picture.shape[:2]
    shrink = max(1.0, max(height, width) / WORKING_SIDE)
    small = (max(round(width / shrink), 1), max(round(height / shrink), 1))
    red, green, blue = cv2.split(cv2.resize(picture, small, interpolation=cv2.INTER_AREA))
    grey = cv2.medianBlur(cv2.max(cv2.max(red, green), blue), 3).astype(np.float64)
    background, eye = _levels(grey)
    if eye - background < 6:
        return None
    best, best_support = None, MIN_SUPPORT
    for level in LEVELS:
        points = _outline(grey > background + max(level * (eye - background), 3))
        circle = _consensus(points, grey.shape)
        if circle is None or _outline_share(points, circle) < MIN_OUTLINE:
            continue
        support = _support(grey, circle, background, eye)
        if support > best_support:
            best, best_support = circle, support
        if best_support > CLEAR_SUPPORT:
            break
    if best is None:
        return None
    zoom = (width / small[0] + height / small[1]) / 2
    return Circle(best.x * width / small[0], best.y * height / small[1], best.radius * zoom)


def _levels(grey: Floats) -> tuple[float, float]:
    """Typical grey value of the background (darker corners) and of the eye (centre of the image)."""
    height, width = grey.shape
    side = max(2, min(height, width) // 24)
    corners = [grey[:side, :side], grey[:side, -side:], grey[-side:, :side], grey[-side:, -side:]]
    middle = grey[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(np.sort([np.median(corner) for corner in corners])[1]), float(np.median(middle))


def _outline(mask: npt.NDArray[np.bool_]) -> Floats:
    """Outermost edge points (n, 2) of the largest region in each row and column, without the image border."""
    count, labels, areas, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return np.empty((0, 2))
    region = labels == 1 + int(np.argmax(areas[1:, cv2.CC_STAT_AREA]))
    points = []
    for across, turned in ((True, region), (False, region.T)):
        lines = np.flatnonzero(turned.any(axis=1))
        length = turned.shape[1]
        first = turned[lines].argmax(axis=1)
        last = length - turned[lines][:, ::-1].argmax(axis=1)
        for edge in (first, last):
            inside = (edge > 1) & (edge < length - 1)
            pair = [edge[inside], lines[inside] + 0.5]
            points.append(np.stack(pair if across else pair[::-1], axis=1))
    return np.concatenate(points).astype(np.float64)


def _consensus(points: Floats, shape: tuple[int, ...]) -> Circle | None:
    """Circle with most points on it: RANSAC with fixed random triples, then least squares on the inliers."""
    if len(points) < 30:
        return None
    triples = np.random.default_rng(0).integers(0, len(points), (200, 3))
    circles = _through(points[triples[:, 0]], points[triples[:, 1]], points[triples[:, 2]])
    shorter, longer = min(shape), max(shape)
    radius = circles[:, 2]
    circles = circles[(radius > 0.25 * shorter) & (radius < 0.75 * longer)]
    if not len(circles):
        return None
    x, y, radius = circles.T[..., None]
    squared = (points[:, 0] - x) ** 2 + (points[:, 1] - y) ** 2  # faster than with square roots
    near = (squared > (radius - TOLERANCE) ** 2) & (squared < (radius + TOLERANCE) ** 2)
    circle = circles[np.argmax(np.count_nonzero(near, axis=1))]
    for _ in range(3):
        away = np.abs(np.hypot(points[:, 0] - circle[0], points[:, 1] - circle[1]) - circle[2])
        near = points[away < TOLERANCE]
        if len(near) < 30:
            return None
        circle = _least_squares(near)
    return Circle(*(float(value) for value in circle))


def _outline_share(points: Floats, circle: Circle) -> float:
    """Share of the outline (n, 2) within twice the tolerance of the circle."""
    away = np.abs(np.hypot(points[:, 0] - circle.x, points[:, 1] - circle.y) - circle.radius)
    return float((away < 2 * TOLERANCE).mean())


def _through(a: Floats, b: Floats, c: Floats) -> Floats:
    """Circles (m, 3), x, y, radius, through three points (n, 2) each; collinear triples are left out."""
    b, c = b - a, c - a
    cross = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    proper = np.abs(cross) > 1e-6
    a, b, c, cross = a[proper], b[proper], c[proper], cross[proper]
    bb, cc = (b**2).sum(axis=1), (c**2).sum(axis=1)
    x = (c[:, 1] * bb - b[:, 1] * cc) / cross
    y = (b[:, 0] * cc - c[:, 0] * bb) / cross
    return np.stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)], axis=1)


def _least_squares(points: Floats) -> Floats:
    """Algebraic circle fit (Kasa): linear in the centre and in radius squared minus centre squared."""
    system = np.column_stack([2 * points, np.ones(len(points))])
    x, y, rest = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0]
    return np.array([x, y, np.sqrt(max(rest + x * x + y * y, 0.0))])


def _support(grey: Floats, circle: Circle, background: float, eye: float) -> float:
    """Share of the circle's visible outline that is an edge; 0 if too little of it is visible."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    height, width = grey.shape

    def ring(radius: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
        x = np.floor(circle.x + radius * np.cos(angles)).astype(int)
        y = np.floor(circle.y + radius * np.sin(angles)).astype(int)
        visible = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return grey[y.clip(0, height - 1), x.clip(0, width - 1)], visible

    inside, _ = ring(circle.radius - 3)
    outside, visible = ring(circle.radius + 3)
    if visible.mean() < 0.2:
        return 0.0
    contrast = eye - background
    edge = (inside - outside > 0.05 * contrast) & (outside < background + 0.5 * contrast)
    return float(edge[visible].mean())

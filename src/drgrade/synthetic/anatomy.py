"""Geometry of a painted eye: camera, optic disc, vessel tree.

Lengths are in radii of the usual field of view and points are (x, y) measured from the fovea, x rightwards
and y downwards, so that images of any size show the same eye. Anatomy is drawn for a right eye (disc to the
right of the fovea) and mirrored for a left one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2)

AVASCULAR_RADIUS = 0.12
"""No vessel comes closer to the fovea."""
STEP = 0.02
"""Distance between two points of a vessel."""
SITE_ASPECT, SITE_SHARE, SITE_REACH = 3 / 4, 0.46, 1.11
"""The other hospital's images: height to width; radius of the field to height, so that nothing is cut off;
and radius of the field to the usual one, as 50 degrees are to 45."""
SITE_SCALE, SITE_GAINS = 0.8, (0.88, 1.12, 1.5)
"""Pixels along a side, and red, green and blue light, beside the usual camera's."""
SITE_BLUR, SITE_NOISE, SITE_VIGNETTE, SITE_QUALITY = 1.2, 3.0, 0.25, -20
"""Added to the usual camera's."""


@dataclass(frozen=True)
class Camera:
    """How an eye is photographed: image size in pixels, field of view, and the faults of the image."""

    width: int
    height: int
    radius: float  # pixels to a unit of length
    centre: tuple[float, float]  # of the field of view, in pixels
    gaze: tuple[float, float]  # centre of the field of view, from the fovea, in radii
    notch: bool
    gains: tuple[float, float, float]
    exposure: float
    blur: float  # pixels at a radius of 300
    noise: float  # grey levels
    black: float  # grey level outside the field of view
    quality: int  # of the JPEG
    reach: float = 1.0  # radius of the field of view
    vignette: float = 0.0  # light lost at its edge, beyond the usual, 0-1
    pattern: tuple[int, int] | None = None  # (height, width) that coarse random patterns are drawn for

    def to_pixels(self, points: Points) -> Points:
        """Points (n, 2) measured from the fovea, in pixels of the image."""
        return (np.asarray(points) - self.gaze) * self.radius + self.centre

    def sees(self, x: float, y: float, margin: float) -> bool:
        """Whether a disc of radius ``margin`` around the point is inside field of view and image."""
        px, py = self.to_pixels(np.array([[x, y]]))[0]
        room = margin * self.radius
        inside = room <= px <= self.width - room and room <= py <= self.height - room
        return bool(inside and np.hypot(x - self.gaze[0], y - self.gaze[1]) + margin < 0.95 * self.reach)

    def shifted(self, amount: float) -> "Camera":
        """This camera on its way, 0 to 1, to that of another hospital; sees all that this one sees.

        The other camera has a lower resolution, shows its whole field, wider by a ninth, on a 4:3 image,
        renders less red and more blue, is less sharp, darker at the edge and noisier, and saves smaller
        JPEGs. The ranges are chosen (docs/demo.md says why), not fitted to a dataset.
        """
        if amount == 0:
            return self

        def towards(start: float, end: float) -> float:
            return start + amount * (end - start)

        share = self.radius * self.reach / self.height
        columns = 2 * round(self.width * towards(1, SITE_SCALE) / 2)
        rows = 2 * round(columns * towards(self.height / self.width, SITE_ASPECT) / 2)
        reach = towards(self.reach, SITE_REACH)
        red, green, blue = (gain * site**amount for gain, site in zip(self.gains, SITE_GAINS, strict=True))
        return replace(
            self,
            width=columns,
            height=rows,
            radius=rows * towards(share, min(share, SITE_SHARE)) / reach,
            centre=(self.centre[0] * columns / self.width, self.centre[1] * rows / self.height),
            gains=(red, green, blue),
            blur=self.blur + amount * SITE_BLUR,
            noise=self.noise + amount * SITE_NOISE,
            quality=self.quality + round(amount * SITE_QUALITY),
            reach=reach,
            vignette=self.vignette + amount * SITE_VIGNETTE,
            pattern=self.pattern or (self.height, self.width),
        )


@dataclass(frozen=True)
class Vessel:
    """A vessel's centre line (n, 2) and its width at each point (n,)."""

    points: Points
    widths: NDArray[np.float64]
    vein: bool


@dataclass(frozen=True)
class Anatomy:
    """What a healthy eye shows; places from the fovea, lengths in radii of the field of view."""

    disc: tuple[float, float]
    disc_axes: tuple[float, float]  # half width and half height
    cup: float  # cup to disc ratio
    vessels: tuple[Vessel, ...]


def draw_camera(rng: np.random.Generator, width: int, left: bool) -> Camera:
    """One of four kinds of camera; ``width`` is the mean image width in pixels over all of them."""
    kind = rng.choice(["wide", "truncated", "square", "classic"], p=[0.3, 0.3, 0.2, 0.2])
    aspect, share = {
        "wide": (2 / 3, rng.uniform(0.46, 0.49)),  # full disc, much black at the sides
        "truncated": (2 / 3, rng.uniform(0.58, 0.64)),  # top and bottom cut off, as in IDRiD
        "square": (rng.uniform(0.95, 1.0), rng.uniform(0.47, 0.5)),
        "classic": (3 / 4, rng.uniform(0.52, 0.56)),
    }[str(kind)]
    columns = 2 * round(width * rng.choice([0.8, 0.9, 1.0, 1.1, 1.2]) / 2)
    rows = 2 * round(columns * aspect / 2)
    gaze_x = rng.normal(0.12, 0.05)
    return Camera(
        width=columns,
        height=rows,
        radius=rows * share,
        centre=(columns / 2 + rng.normal(0, 0.01) * columns, rows / 2),
        gaze=(-gaze_x if left else gaze_x, rng.normal(0, 0.04)),
        notch=bool(rng.random() < 0.4),
        gains=(1.0, rng.uniform(0.88, 1.14), rng.uniform(0.7, 1.25)),
        exposure=rng.uniform(0.78, 1.16),
        blur=rng.uniform(0.35, 1.1),
        noise=rng.uniform(1.0, 3.0),
        black=rng.uniform(0, 6),
        quality=int(rng.integers(90, 95)),
    )


def _smooth(control: Points) -> Points:
    """A smooth line through a control polygon (Chaikin's corner cutting), resampled to even steps."""
    line = control
    for _ in range(4):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.vstack([line[:1], np.stack([near, far], 1).reshape(-1, 2), line[-1:]])
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    even = np.linspace(0, along[-1], max(int(along[-1] / STEP), 3))
    return np.column_stack([np.interp(even, along, line[:, 0]), np.interp(even, along, line[:, 1])])


def _wander(rng: np.random.Generator, start: Points, heading: float, length: float, curl: float) -> Points:
    """A winding path: its heading is a smooth random walk."""
    steps = max(int(length / STEP), 4)
    turns = np.convolve(rng.normal(0, curl, steps + 6), np.ones(7) / 7, "valid")
    headings = heading + np.cumsum(turns)
    moves = STEP * np.column_stack([np.cos(headings), np.sin(headings)])
    return np.vstack([start, start + np.cumsum(moves, axis=0)])


def _clip(points: Points) -> Points:
    """The path up to the point where it would enter the avascular zone or leave the field for good."""
    distance = np.hypot(*points.T)
    stop = np.flatnonzero((distance < AVASCULAR_RADIUS) | (distance > 1.6))
    return points[: stop[0]] if len(stop) else points


def _branches(rng: np.random.Generator, parent: Vessel, count: int, depth: int) -> list[Vessel]:
    """Side branches of a vessel, and theirs; each thinner than what it leaves."""
    found: list[Vessel] = []
    room = len(parent.points) - 2
    if depth == 0 or room < 6:
        return found
    for place in np.sort(rng.choice(np.arange(4, room), min(count, room - 4), replace=False)):
        ahead = parent.points[place + 1] - parent.points[place - 1]
        heading = np.arctan2(ahead[1], ahead[0]) + rng.choice([-1, 1]) * rng.uniform(0.45, 1.1)
        width = parent.widths[place] * rng.uniform(0.4, 0.65)
        path = _clip(_wander(rng, parent.points[place], heading, rng.uniform(0.2, 0.3) + 20 * width, 0.2))
        if len(path) > 4:
            child = Vessel(path, width * np.linspace(1, 0.35, len(path)), parent.vein)
            found += [child, *_branches(rng, child, int(rng.integers(1, 4)), depth - 1)]
    return found


def _arcades(rng: np.random.Generator, disc: Points) -> list[Points]:
    """Control polygons of the four vessel pairs of a right eye: temporal and nasal, above and below."""
    height = rng.uniform(0.5, 0.62)
    found = []
    for up in (-1, 1):
        temporal = [(0.62, up * 0.28), (0.36, up * height), (-0.05, up * (height + 0.08)),
                    (-0.45, up * (height + 0.02)), (-0.95, up * (height - 0.02))]  # fmt: skip
        nasal = [(disc[0] + 0.12, up * 0.25), (disc[0] + 0.3, up * 0.5), (disc[0] + 0.55, up * 0.75)]
        found += [np.vstack([disc, temporal]), np.vstack([disc, nasal])]
    return found


def draw_anatomy(patient: np.random.Generator, eye: np.random.Generator, left: bool) -> Anatomy:
    """An eye of a patient.

    ``patient`` must be in the same state for both eyes: it draws what they share (disc, cup, course of the
    arcades); ``eye`` draws what differs (windings and branches).
    """
    disc = np.array([patient.uniform(0.6, 0.7), patient.normal(-0.05, 0.03)])
    half = patient.uniform(0.125, 0.155)
    axes = (half * patient.uniform(0.86, 0.96), half)
    cup = patient.uniform(0.25, 0.6)
    calibre = patient.uniform(0.022, 0.029)
    vessels: list[Vessel] = []
    for control in _arcades(patient, disc):
        for vein in (True, False):
            loose = (
                control + eye.normal(0, 0.03, control.shape) * np.linspace(0.5, 1.5, len(control))[:, None]
            )
            path = _smooth(loose)
            sway = np.convolve(eye.normal(0, 0.035, len(path) + 8), np.ones(9) / 9, "valid")
            path[:, 1] += sway * np.linspace(0, 1, len(path))
            widths = calibre * (1.0 if vein else 0.72) * np.linspace(1, 0.4, len(path))
            main = Vessel(_clip(path), widths, vein)
            vessels += [main, *_branches(eye, main, int(eye.integers(4, 7)), 2)]
    for heading in eye.uniform(-np.pi, np.pi, 5):  # small vessels straight from the disc
        path = _clip(_wander(eye, disc, heading, eye.uniform(0.3, 0.6), 0.15))
        if len(path) > 4:
            small = Vessel(path, 0.35 * calibre * np.linspace(1, 0.4, len(path)), bool(eye.random() < 0.5))
            vessels += [small, *_branches(eye, small, 2, 1)]
    if not left:
        return Anatomy((disc[0], disc[1]), axes, cup, tuple(vessels))
    mirror = np.array([-1.0, 1.0])
    mirrored = tuple(Vessel(v.points * mirror, v.widths, v.vein) for v in vessels)
    return Anatomy((-disc[0], disc[1]), axes, cup, mirrored)

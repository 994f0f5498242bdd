"""Geometry of a synthetic eye: camera, optic disc, vessel tree.

Lengths are in radii of the default field of view. Points are (x, y) relative to the fovea, x to the right
and y down, so that images of any size show the same eye. Anatomy is generated for a right eye (disc to the
right of the fovea) and mirrored for a left one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2)

AVASCULAR_RADIUS = 0.12
"""Radius of the area around the fovea without vessels."""
STEP = 0.02
"""Distance between consecutive points of a vessel."""
SITE_ASPECT, SITE_SHARE, SITE_REACH = 3 / 4, 0.46, 1.11
"""Images of the second hospital: ratio of height to width; radius of the field of view as a fraction of the
height (below 0.5, so that nothing is cut off); the same radius relative to the default (50 to 45 degrees)."""
SITE_SCALE, SITE_GAINS = 0.8, (0.88, 1.12, 1.5)
"""Second hospital: image width and red, green and blue gains, as factors of the default camera's."""
SITE_BLUR, SITE_NOISE, SITE_VIGNETTE, SITE_QUALITY = 1.2, 3.0, 0.25, -20
"""Second hospital: values added to the default camera's."""


@dataclass(frozen=True)
class Camera:
    """Camera parameters: image size in pixels, field of view, and image degradation."""

    width: int
    height: int
    radius: float  # pixels per unit of length
    centre: tuple[float, float]  # of the field of view, in pixels
    gaze: tuple[float, float]  # centre of the field of view, from the fovea, in radii
    notch: bool
    gains: tuple[float, float, float]
    exposure: float
    blur: float  # pixels at a radius of 300
    noise: float  # grey levels
    black: float  # grey level outside the field of view
    quality: int  # JPEG quality
    reach: float = 1.0  # radius of the field of view in units of length
    vignette: float = 0.0  # additional loss of light at the edge of the field, 0-1
    pattern: tuple[int, int] | None = None  # (height, width) for which random textures are generated

    def to_pixels(self, points: Points) -> Points:
        """Convert points (n, 2) relative to the fovea to image pixels."""
        return (np.asarray(points) - self.gaze) * self.radius + self.centre

    def sees(self, x: float, y: float, margin: float) -> bool:
        """Whether a disc of radius ``margin`` around the point is inside the field of view and the image."""
        px, py = self.to_pixels(np.array([[x, y]]))[0]
        room = margin * self.radius
        inside = room <= px <= self.width - room and room <= py <= self.height - room
        return bool(inside and np.hypot(x - self.gaze[0], y - self.gaze[1]) + margin < 0.95 * self.reach)

    def shifted(self, amount: float) -> "Camera":
        """Interpolate by ``amount`` (0-1) between this camera and that of a second hospital (domain shift).

        The second camera has a lower resolution, shows the whole field of view, wider by a ninth, on a 4:3
        image, has less red and more blue, more blur, vignetting and noise, and a lower JPEG quality. It shows
        all that this one shows. The values are chosen (docs/demo.md explains them), not fitted to data.
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
    """A vessel: its centre line (n, 2), and its width at each point (n,)."""

    points: Points
    widths: NDArray[np.float64]
    vein: bool


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of a healthy eye; positions relative to the fovea, lengths in radii of the field of view."""

    disc: tuple[float, float]
    disc_axes: tuple[float, float]  # half width and half height
    cup: float  # cup to disc ratio
    vessels: tuple[Vessel, ...]


def draw_camera(rng: np.random.Generator, width: int, left: bool) -> Camera:
    """Draw a random camera of one of four kinds; ``width`` is their mean image width in pixels."""
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
    """Smooth a control polygon (n, 2) by Chaikin's corner cutting and resample it to steps of about STEP."""
    line = control
    for _ in range(4):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        line = np.vstack([line[:1], np.stack([near, far], 1).reshape(-1, 2), line[-1:]])
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    even = np.linspace(0, along[-1], max(int(along[-1] / STEP), 3))
    return np.column_stack([np.interp(even, along, line[:, 0]), np.interp(even, along, line[:, 1])])


def _wander(rng: np.random.Generator, start: Points, heading: float, length: float, curl: float) -> Points:
    """Return a winding path (n, 2) whose direction is a smooth random walk."""
    steps = max(int(length / STEP), 4)
    turns = np.convolve(rng.normal(0, curl, steps + 6), np.ones(7) / 7, "valid")
    headings = heading + np.cumsum(turns)
    moves = STEP * np.column_stack([np.cos(headings), np.sin(headings)])
    return np.vstack([start, start + np.cumsum(moves, axis=0)])


def _clip(points: Points) -> Points:
    """Cut a path where it enters the avascular zone or moves more than 1.6 radii away from the fovea."""
    distance = np.hypot(*points.T)
    stop = np.flatnonzero((distance < AVASCULAR_RADIUS) | (distance > 1.6))
    return points[: stop[0]] if len(stop) else points


def _branches(rng: np.random.Generator, parent: Vessel, count: int, depth: int) -> list[Vessel]:
    """Return side branches of a vessel, recursively up to ``depth``; each is thinner than its parent."""
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
    """Return the control polygons of a right eye's four vessel arcades: temporal and nasal, up and down."""
    height = rng.uniform(0.5, 0.62)
    found = []
    for up in (-1, 1):
        temporal = [(0.62, up * 0.28), (0.36, up * height), (-0.05, up * (height + 0.08)),
                    (-0.45, up * (height + 0.02)), (-0.95, up * (height - 0.02))]  # fmt: skip
        nasal = [(disc[0] + 0.12, up * 0.25), (disc[0] + 0.3, up * 0.5), (disc[0] + 0.55, up * 0.75)]
        found += [np.vstack([disc, temporal]), np.vstack([disc, nasal])]
    return found


def draw_anatomy(patient: np.random.Generator, eye: np.random.Generator, left: bool) -> Anatomy:
    """Draw the anatomy of one eye of a patient.

    The generator ``patient`` must be in the same state for both eyes: it determines what they share (disc,
    cup, course of the arcades); ``eye`` determines what differs (tortuosity and branches).
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

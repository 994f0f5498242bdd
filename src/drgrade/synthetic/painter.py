"""Render a synthetic fundus photograph from pigment, blood, lesions and camera effects.

The fundus reflects orange light. Blood (vessels, haemorrhages) absorbs it, mostly green and blue, and is
modelled as an optical density. Exudates scatter light and are alpha-blended on top. The camera then adds
blur, a colour cast, noise and a black border. Lesion masks are the shapes that were drawn.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from drgrade.schema import LESIONS
from drgrade.synthetic.anatomy import Anatomy, Camera, Points
from drgrade.synthetic.icdr import Lesion

Plane = NDArray[np.float32]  # (height, width)
ABSORPTION = np.array([0.42, 1.3, 0.95], np.float32)
"""Optical density of blood for red, green and blue where the blood plane is 1."""
SUBPIXEL = 4
"""Fractional bits of the fixed-point coordinates passed to OpenCV."""


@dataclass(frozen=True)
class Eye:
    """All parameters of one photograph; equal parameters give identical pixels."""

    camera: Camera
    anatomy: Anatomy
    lesions: tuple[Lesion, ...]
    pigment: tuple[float, float, float]  # reflectance of the fundus, 0-1
    tigroid: float  # visibility of choroidal vessels, 0-1
    seed: int  # random seed of texture and noise
    lesion_contrast: float = 1.0  # factor of the lesions' contrast


class _Canvas:
    """Named 8-bit image planes to draw on, in the eye's coordinates."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.planes: dict[str, NDArray[np.uint8]] = {}

    def plane(self, name: str) -> NDArray[np.uint8]:
        """Return the plane of this name, uint8 (height, width); all 0 when first used."""
        if name not in self.planes:
            self.planes[name] = np.zeros((self.camera.height, self.camera.width), np.uint8)
        return self.planes[name]

    def fill(self, name: str, outline: Points, value: float = 1.0) -> None:
        """Fill a polygon (n, 2), antialiased, with a value 0-1."""
        # OpenCV's origin is the centre of the first pixel, ours is its outer corner.
        corners = np.round((self.camera.to_pixels(outline) - 0.5) * 2**SUBPIXEL).astype(np.int32)
        cv2.fillPoly(self.plane(name), [corners], round(255 * value), cv2.LINE_AA, SUBPIXEL)

    def ribbon(self, name: str, points: Points, widths: NDArray[np.float64], value: float) -> None:
        """Draw a line of varying width; lines too thin to resolve are drawn fainter instead."""
        ahead = np.gradient(points, axis=0)
        normal = np.column_stack([-ahead[:, 1], ahead[:, 0]]) / (np.hypot(*ahead.T)[:, None] + 1e-9)
        pixels = widths * self.camera.radius
        half = (np.maximum(pixels, 1.2) / self.camera.radius / 2)[:, None]
        outline = np.vstack([points + half * normal, (points - half * normal)[::-1]])
        self.fill(name, outline, value * float(np.clip(pixels.mean() / 2.5, 0.2, 1)))

    def soft(self, name: str, sigma: float) -> Plane:
        """Return the plane scaled to 0-1, with a Gaussian blur of ``sigma`` radii of the field of view."""
        plane = self.plane(name).astype(np.float32) / 255
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), max(sigma * self.camera.radius, 0.3)))


def _texture(rng: np.random.Generator, camera: Camera, cells: float) -> Plane:
    """Return smooth noise with standard deviation about 1 and ``cells`` grid cells along the longer side."""
    # The grid follows ``pattern``, not the image shape, so that a shifted camera shows the same eye.
    shape = camera.pattern or (camera.height, camera.width)
    rows, columns = (max(round(cells * side / max(shape)), 2) for side in shape)
    grid = rng.standard_normal((rows, columns), np.float32)
    return np.asarray(cv2.resize(grid, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC))


def _grid(camera: Camera) -> tuple[Plane, Plane]:
    """Return x (1, width) and y (height, 1) of the pixel centres relative to the fovea, in radii."""
    x = (np.arange(camera.width, dtype=np.float32) + 0.5 - camera.centre[0]) / camera.radius + camera.gaze[0]
    y = (np.arange(camera.height, dtype=np.float32) + 0.5 - camera.centre[1]) / camera.radius + camera.gaze[1]
    return x[None, :].astype(np.float32), y[:, None].astype(np.float32)


def field_of_view(camera: Camera) -> Plane:
    """Return the field of view as a mask (height, width), 0-1, antialiased, on some cameras with a notch."""
    x, y = _grid(camera)
    radius = np.hypot(x - camera.gaze[0], y - camera.gaze[1]) / camera.reach
    if camera.notch:
        tab = (np.abs(np.arctan2(y - camera.gaze[1], x - camera.gaze[0]) + 0.6) < 0.035) & (radius < 1.045)
        radius = np.where(tab, 0.9, radius)
    return np.clip((1 - radius) * camera.radius * camera.reach / 2 + 0.5, 0, 1).astype(np.float32)


def _fundus(eye: Eye, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the reflectance (height, width, 3) without blood: pigment, choroid, macula, optic disc."""
    camera, anatomy = eye.camera, eye.anatomy
    x, y = _grid(camera)
    mottle = (
        0.05 * _texture(rng, camera, 6) + 0.03 * _texture(rng, camera, 24) + 0.02 * _texture(rng, camera, 90)
    )
    streaks = np.abs(_texture(rng, camera, 36) + 0.5 * _texture(rng, camera, 60))
    mottle += (
        eye.tigroid * 0.22 * (np.minimum(streaks, 1) - 0.55) * np.clip(np.hypot(x, y) - 0.15, 0, 0.5) * 2
    )
    macula = np.exp(-(x**2 + y**2) / 0.05) * 0.28 + np.exp(-(x**2 + y**2) / 0.004) * 0.14
    colour = np.array(eye.pigment, np.float32)
    hue = np.array([0.55, 1.0, 1.25], np.float32)  # brightness differs more in green and blue than in red
    reflectance = colour * np.exp(np.maximum(mottle - macula, -1.2)[..., None] * hue)
    away = np.hypot(
        (x - anatomy.disc[0]) / anatomy.disc_axes[0], (y - anatomy.disc[1]) / anatomy.disc_axes[1]
    )
    halo = 0.18 * np.exp(-np.maximum(away - 1, 0) * 2.2)
    rim = 1 / (1 + np.exp((away + 0.06 * _texture(rng, camera, 30) - 1) * 22))
    cup = 1 / (1 + np.exp((away / anatomy.cup - 1) * 5))
    for channel, (rim_level, cup_level) in enumerate([(0.98, 1.04), (0.62, 0.85), (0.26, 0.48)]):
        plane = reflectance[..., channel] * (1 + halo)
        disc = rim_level + (cup_level - rim_level) * cup
        reflectance[..., channel] = plane + rim * (disc - plane)
    return np.asarray(reflectance, np.float32)


def _draw_vessels(canvas: _Canvas, eye: Eye) -> None:
    """Draw arteries and veins on the plane ``vessels``, thin ones first; beaded veins vary in width."""
    beads = np.array([(lesion.x, lesion.y, lesion.size) for lesion in eye.lesions if lesion.kind == "VB"])
    for vessel in sorted(eye.anatomy.vessels, key=lambda vessel: float(vessel.widths[0])):
        widths = vessel.widths
        if vessel.vein and len(beads):
            near = np.hypot(*(vessel.points[:, None] - beads[:, :2]).transpose(2, 0, 1)) < 1.5 * beads[:, 2]
            swelling = min(0.6 * eye.lesion_contrast, 0.9)
            widths = widths * (1 + swelling * near.any(1) * np.sin(np.arange(len(widths)) * 1.6))
        canvas.ribbon("vessels", vessel.points, widths, 0.62 if vessel.vein else 0.4)
        if widths[0] * eye.camera.radius > 4:  # central light reflex of larger vessels
            canvas.ribbon("vessels", vessel.points, 0.3 * widths, 0.5 if vessel.vein else 0.26)


def _outline(lesion: Lesion) -> Points:
    """Return the outline (n, 2) of a lesion: a circle perturbed by harmonics, elongated for a flame."""
    rng = np.random.default_rng(lesion.seed)
    theta = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    rough = {"MA": 0.04, "EX": 0.22, "SE": 0.3, "PRH": 0.08}.get(lesion.kind, 0.0)
    rough = {"dot": 0.06, "blot": 0.17, "flame": 0.2}.get(lesion.shape, rough)
    waves = rng.normal(0, rough, 5) / np.arange(1, 6) ** 0.5
    radius = 1 + sum(w * np.cos(k * theta + rng.uniform(0, 6.3)) for k, w in enumerate(waves, 2))
    radius = lesion.size * np.maximum(radius, 0.3)
    stretch = {"flame": 1.9, "": 1.25 if lesion.kind == "SE" else 1.0}.get(lesion.shape, 1.0)
    centre = np.array([lesion.x, lesion.y])
    points = np.column_stack([radius * np.cos(theta) * stretch, radius * np.sin(theta) / stretch])
    if lesion.kind == "PRH":  # preretinal blood settles: boat shape, flat top
        points[:, 1] = np.maximum(points[:, 1], -0.15 * lesion.size)
        return points + centre
    turn = np.array(
        [[np.cos(lesion.angle), np.sin(lesion.angle)], [-np.sin(lesion.angle), np.cos(lesion.angle)]]
    )
    return points @ turn + centre


def _draw_tangle(canvas: _Canvas, lesion: Lesion) -> None:
    """Draw new vessels or IRMA as a tangle of thin, curved vessels."""
    rng = np.random.default_rng(lesion.seed)
    fine = 0.0055 if lesion.kind == "NV" else 0.004
    for _ in range(15 if lesion.kind == "NV" else 7):
        turns = np.convolve(rng.normal(0, 1.1, 40), np.ones(5) / 5, "same") + rng.choice([-0.12, 0.12])
        headings = rng.uniform(-np.pi, np.pi) + np.cumsum(turns)
        step = lesion.size * rng.uniform(0.05, 0.1)
        path = np.cumsum(step * np.column_stack([np.cos(headings), np.sin(headings)]), axis=0)
        path += rng.normal((lesion.x, lesion.y), 0.3 * lesion.size)
        canvas.ribbon("tangles", path, np.full(len(path), fine * rng.uniform(0.7, 1.3)), 0.9 * lesion.depth)


def _draw_lesions(canvas: _Canvas, eye: Eye) -> None:
    """Draw each lesion's shape on the plane of its kind, and its contrast on a second plane."""
    for lesion in eye.lesions:
        if lesion.kind in ("NV", "IRMA"):
            _draw_tangle(canvas, lesion)
        elif lesion.kind != "VB":
            kind = "HE" if lesion.kind == "PRH" else lesion.kind
            outline = _outline(lesion)
            canvas.fill(kind, outline)
            canvas.fill(f"{kind} depth", outline, lesion.depth)


def _illumination(eye: Eye, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the illumination (height, width, 3): vignetted, uneven, in some images with haze at the edge."""
    camera = eye.camera
    x, y = _grid(camera)
    x, y = (x - camera.gaze[0]) / camera.reach, (y - camera.gaze[1]) / camera.reach
    offset = rng.normal(0, 0.18, 2)
    fall = (rng.uniform(0.22, 0.5) + camera.vignette) * ((x - offset[0]) ** 2 + (y - offset[1]) ** 2)
    light = camera.exposure * (1 - np.minimum(fall, 0.75))
    light = light * (1 + 0.06 * _texture(rng, camera, 3))
    haze = max(rng.normal(0, 0.14), 0) * np.clip((np.hypot(x, y) - 0.8) / 0.2, 0, 1) ** 2
    planes = [light * gain + haze * tint for gain, tint in zip(camera.gains, (0.9, 0.85, 0.6), strict=True)]
    return np.stack(planes, axis=-1).astype(np.float32)


def _blend(image: NDArray[np.float32], alpha: Plane, colour: tuple[float, float, float]) -> None:
    for channel, level in enumerate(colour):
        image[..., channel] += alpha * (level - image[..., channel])


def paint(eye: Eye) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Return the photograph (height, width, 3) uint8 RGB, and a mask (height, width) for each kind of lesion.

    A mask is true where a lesion covers at least half of a pixel inside the field of view. Kinds that were
    not drawn have no mask.
    """
    camera, contrast, rng = eye.camera, eye.lesion_contrast, np.random.default_rng(eye.seed)
    canvas = _Canvas(camera)
    _draw_vessels(canvas, eye)
    _draw_lesions(canvas, eye)
    image = _fundus(eye, rng)
    blood = canvas.soft("vessels", 0.0012)
    for name, sigma in (("HE depth", 0.004), ("MA depth", 0.0015), ("tangles", 0.0012)):
        if name in canvas.planes:
            blood = np.maximum(blood, contrast * canvas.soft(name, sigma))
    for channel, absorbed in enumerate(ABSORPTION):
        image[..., channel] *= np.exp(-absorbed * blood)
    if "EX" in canvas.planes:
        _blend(image, np.minimum(contrast * canvas.soft("EX depth", 0.0012), 1), (1.0, 0.86, 0.36))
    if "SE" in canvas.planes:
        _blend(image, np.minimum(contrast * 0.85 * canvas.soft("SE depth", 0.012), 1), (0.95, 0.78, 0.42))
    image *= _illumination(eye, rng)
    image[:] = cv2.GaussianBlur(image, (0, 0), max(camera.blur * camera.radius / 300, 0.3))
    field = field_of_view(camera)
    image *= 255 * field[..., None]
    image += camera.black
    noise = rng.standard_normal(image.shape, np.float32)
    image += noise * (0.3 + field * camera.noise)[..., None]
    masks = {kind: (canvas.planes[kind] >= 128) & (field > 0.5) for kind in LESIONS if kind in canvas.planes}
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), masks

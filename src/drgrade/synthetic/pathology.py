"""Draw random lesions for a synthetic eye, such that the clinical scale gives the requested grade."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from drgrade.synthetic.anatomy import Anatomy, Camera
from drgrade.synthetic.icdr import HAEMORRHAGES_PER_QUADRANT, Lesion, icdr_grade

QUADRANTS = ((False, False), (False, True), (True, False), (True, True))
Quadrant = tuple[bool, bool]


@dataclass(frozen=True)
class Recipe:
    """Numbers of lesions by kind, as (minimum, maximum).

    ``clusters`` are clusters of hard exudates (EX), ``soft`` are soft exudates (SE); ``chance`` is the
    probability, for EX and SE separately, that an eye has any.
    """

    microaneurysms: tuple[int, int]
    haemorrhages: tuple[int, int] = (0, 0)
    clusters: tuple[int, int] = (0, 0)
    soft: tuple[int, int] = (0, 0)
    chance: float = 1.0


RECIPES = {
    1: Recipe((4, 16)),
    2: Recipe((5, 25), (4, 30), (1, 4), (1, 3), 0.6),
    3: Recipe((15, 40), (40, 70), (1, 4), (1, 5), 0.7),
    4: Recipe((10, 30), (10, 60), (1, 4), (1, 4), 0.6),
}
RICH = Recipe((15, 40), (12, 40), (2, 5), (1, 5))
"""Lesions of photographs for training a detector: many of every kind."""


def _count(rng: np.random.Generator, bounds: tuple[int, int], chance: float = 1.0) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1)) if rng.random() < chance else 0


class _Sketch:
    """Collects the lesions placed so far and finds free positions for new ones."""

    def __init__(self, rng: np.random.Generator, camera: Camera, anatomy: Anatomy) -> None:
        self.rng, self.camera, self.anatomy = rng, camera, anatomy
        self.lesions: list[Lesion] = []

    def _free(self, x: float, y: float, size: float, kind: str) -> bool:
        disc = np.hypot(x - self.anatomy.disc[0], y - self.anatomy.disc[1])
        if disc < 1.15 * self.anatomy.disc_axes[1] + size or not self.camera.sees(x, y, size):
            return False
        return all(
            np.hypot(x - other.x, y - other.y) > 0.8 * (size + other.size)
            for other in self.lesions
            if other.kind == kind
        )

    def add(self, kind: str, size: float, quadrant: Quadrant | None = None, **more: float | str) -> None:
        """Add a lesion at a random free position in the quadrant; overlaps are allowed after 200 attempts."""
        for attempt in range(2000):
            radius = 0.95 * np.sqrt(self.rng.random())
            angle = self.rng.uniform(-np.pi, np.pi)
            x = self.camera.gaze[0] + radius * np.cos(angle)
            y = self.camera.gaze[1] + radius * np.sin(angle)
            if quadrant is not None and (x >= 0, y >= 0) != quadrant:
                continue
            if self._free(x, y, size, kind if attempt < 200 else ""):
                self.put(kind, x, y, size, **more)
                return
        raise RuntimeError(f"no place for a {kind} of size {size:.3f} in {quadrant or 'the field'}")

    def put(self, kind: str, x: float, y: float, size: float, **more: float | str) -> None:
        """Add a lesion at this position; units as in :class:`drgrade.synthetic.icdr.Lesion`."""
        seed = int(self.rng.integers(2**31))
        depth = float(self.rng.uniform(0.5, 0.9))
        drawn: dict[str, Any] = {"angle": float(self.rng.uniform(0, np.pi)), "depth": depth, **more}
        self.lesions.append(Lesion(kind, float(x), float(y), float(size), seed=seed, **drawn))

    def haemorrhage(self, quadrant: Quadrant | None = None) -> None:
        """Add a haemorrhage: dot, blot or flame."""
        shape = str(self.rng.choice(["dot", "blot", "flame"], p=[0.5, 0.35, 0.15]))
        size = {"dot": (0.013, 0.022), "blot": (0.022, 0.045), "flame": (0.025, 0.045)}[shape]
        self.add("HE", self.rng.uniform(*size), quadrant, shape=shape)

    def exudates(self) -> None:
        """Add a cluster of hard exudates: a compact group, or a ring (circinate)."""
        rng, spread, ring = self.rng, self.rng.uniform(0.06, 0.16), self.rng.random() < 0.35
        self.add("EX", 0.015)
        centre = self.lesions[-1]
        for _ in range(int(rng.integers(8, 26))):
            angle = rng.uniform(0, 2 * np.pi)
            radius = spread * (rng.normal(1, 0.12) if ring else abs(rng.normal(0, 0.7)))
            x, y = centre.x + radius * np.cos(angle), centre.y + radius * np.sin(angle)
            size = min(rng.lognormal(np.log(0.009), 0.45), 0.03)
            if self._free(x, y, size, "EX"):
                self.put("EX", x, y, size)


def _spared(sketch: _Sketch, count: int) -> None:
    """Add haemorrhages such that at least one quadrant stays below the threshold of grade 3."""
    rng = sketch.rng
    spared = QUADRANTS[int(rng.integers(4))]
    for n in range(count):
        home = QUADRANTS[int(rng.integers(4))]
        if home == spared and n >= HAEMORRHAGES_PER_QUADRANT:
            home = QUADRANTS[(QUADRANTS.index(spared) + 1) % 4]
        sketch.haemorrhage(home)


def _severe(sketch: _Sketch, count: int) -> None:
    """Add the lesions of one randomly chosen criterion of the 4-2-1 rule (grade 3)."""
    rng = sketch.rng
    arm = rng.choice(["haemorrhages", "beading", "irma"], p=[0.7, 0.15, 0.15])
    if arm == "haemorrhages":
        for quadrant in QUADRANTS:
            for _ in range(_count(rng, (HAEMORRHAGES_PER_QUADRANT + 1, 29))):
                sketch.haemorrhage(quadrant)
        return
    _spared(sketch, count)
    if arm == "beading":
        for choice in rng.permutation(4)[: int(rng.integers(2, 4))]:
            sketch.add("VB", 0.2, QUADRANTS[int(choice)])
    else:
        for _ in range(int(rng.integers(1, 4))):
            sketch.add("IRMA", rng.uniform(0.06, 0.1))


def _proliferative(sketch: _Sketch, count: int) -> None:
    """Add new vessels at the disc or elsewhere, half of the time with a preretinal haemorrhage."""
    rng, disc = sketch.rng, sketch.anatomy.disc
    _spared(sketch, count)
    if rng.random() < 0.5:
        sketch.put("NV", *disc, rng.uniform(0.16, 0.26))
    else:
        sketch.add("NV", rng.uniform(0.12, 0.2))
    for _ in range(int(rng.integers(0, 3))):
        sketch.add("NV", rng.uniform(0.09, 0.16))
    if rng.random() < 0.5:
        sketch.add("PRH", rng.uniform(0.1, 0.18))


def draw_lesions(
    rng: np.random.Generator, grade: int, camera: Camera, anatomy: Anatomy, rich: bool = False
) -> tuple[Lesion, ...]:
    """Draw lesions of an eye with this ICDR grade inside the field of view; ``rich`` uses the counts RICH.

    Raises:
        RuntimeError: the lesions do not give the grade (a bug in this module), or there is no space for one.
    """
    sketch = _Sketch(rng, camera, anatomy)
    if grade > 0:
        recipe = RICH if rich else RECIPES[grade]
        if grade >= 2:
            place = {2: _spared, 3: _severe, 4: _proliferative}[grade]
            place(sketch, _count(rng, recipe.haemorrhages))
            for _ in range(_count(rng, recipe.clusters, recipe.chance)):
                sketch.exudates()
            for _ in range(_count(rng, recipe.soft, recipe.chance)):
                sketch.add("SE", rng.uniform(0.03, 0.055))
        for _ in range(_count(rng, recipe.microaneurysms)):
            sketch.add("MA", rng.uniform(0.0075, 0.0115))
    if icdr_grade(sketch.lesions) != grade:
        raise RuntimeError(f"painted lesions are of grade {icdr_grade(sketch.lesions)}, not {grade}")
    return tuple(sketch.lesions)

"""Plan the photographs of a synthetic hospital: eyes, true grades and grades in the label file."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from drgrade.data.idrid import IMAGES, MASK_FOLDERS, MASKS, PART_A, PART_B, SETS
from drgrade.params import Demo
from drgrade.rng import derive, numpy_rng
from drgrade.schema import LESIONS
from drgrade.synthetic.anatomy import draw_anatomy, draw_camera
from drgrade.synthetic.icdr import Lesion, icdr_grade
from drgrade.synthetic.painter import Eye
from drgrade.synthetic.pathology import draw_lesions

GRADE_SHARES = (0.30, 0.15, 0.25, 0.15, 0.15)
PIGMENTS = np.array([(0.86, 0.52, 0.24), (0.8, 0.4, 0.1), (0.7, 0.32, 0.08), (0.5, 0.2, 0.07)])
"""RGB reflectance of a pale, two intermediate and a dark fundus; eyes are mixtures of these."""
GRADED = 8
"""Number of photographs in the layout of IDRiD part B, enough to test its reader."""
GRADED_MASKS = "masks"
"""Folder of the graded photographs' masks, if the parameters ask for them."""
TESTED = 4
"""One in this many patients or photographs belongs to the official test set."""


@dataclass(frozen=True)
class Photograph:
    """One image to paint: paths of the image and its masks (relative to the root), and the eye it shows."""

    path: str
    eye: Eye
    masks: dict[str, str]  # lesion code: path
    label: int | None = None  # the grade in the label file, if any

    @property
    def grade(self) -> int:
        """The true grade, determined by the lesions."""
        return icdr_grade(self.eye.lesions)


def written_grade(grade: int, noise: float, seed: int, photograph: str) -> int:
    """Return a noisy grade: with probability ``noise`` one above or below the true grade, equally likely.

    At grades 0 and 4 only one direction is possible. Errors depend on the seed and the photograph's name
    only; a label that is wrong at some noise level is wrong in the same way at all higher levels.
    """
    rng = numpy_rng(seed, photograph, "label")
    wrong, up = rng.random() < noise, rng.random() < 0.5
    if not wrong:
        return grade
    return grade + 1 if grade == 0 or (up and grade < 4) else grade - 1


def _draw_eye(params: Demo, who: str, left: bool, grade: int, rich: bool = False) -> Eye:
    """Draw an eye of the patient ``who``; both eyes share the patient's properties."""
    seed, side = params.seed, "left" if left else "right"
    shared, own = numpy_rng(seed, who, "pigment"), numpy_rng(seed, who, side)
    red, green, blue = shared.dirichlet(np.full(len(PIGMENTS), 0.6)) @ PIGMENTS
    pigment = (float(red), float(green), float(blue))
    tigroid = float(shared.beta(1, 2))
    camera = draw_camera(own, params.width, left)
    anatomy = draw_anatomy(numpy_rng(seed, who, "anatomy"), own, left)
    lesions = draw_lesions(own, grade, camera, anatomy, rich)
    # Lesions are placed in the field of the usual camera, which the shifted camera covers as well.
    camera = camera.shifted(params.camera_shift)
    texture = derive(seed, who, side, "texture")
    return Eye(camera, anatomy, lesions, pigment, tigroid, texture, params.lesion_contrast)


def _grade_deck(seed: int, what: str, count: int) -> list[int]:
    """Shuffled grades of ``count`` eyes with the demo's grade distribution; 5 or more include every grade."""
    ends = np.round(np.cumsum(GRADE_SHARES) * count).astype(int)
    deck = np.repeat(np.arange(5), np.diff(ends, prepend=0))
    for grade in (g for g in range(5) if count >= 5 and g not in deck):
        deck[np.flatnonzero(deck == np.bincount(deck, minlength=5).argmax())[0]] = grade
    return [int(grade) for grade in numpy_rng(seed, what, "grades").permutation(deck)]


def _labelled(params: Demo, path: str, eye: Eye) -> Photograph:
    label = written_grade(icdr_grade(eye.lesions), params.label_noise, params.seed, path)
    return Photograph(path, eye, {}, label)


def plan_patients(params: Demo, first: int = 0) -> list[Photograph]:
    """Plan both eyes of each patient in the layout of EyePACS; their grades differ by at most one.

    Patients are numbered, with gaps, from about ``first``; each number gives a different patient.
    """
    rng, plan, number = numpy_rng(params.seed, "patients"), [], first + 9
    for n, grade in enumerate(_grade_deck(params.seed, "patients", params.patients)):
        number += int(rng.integers(1, 6))
        other = int(np.clip(grade + rng.choice([0, -1, 1], p=[0.7, 0.15, 0.15]), 0, 4))
        folder = "test" if n % TESTED == TESTED - 1 else "train"
        for side, eye_grade in (("left", grade), ("right", other)):
            eye = _draw_eye(params, f"patient {number}", side == "left", eye_grade)
            plan.append(_labelled(params, f"eyepacs/{folder}/{number}_{side}.jpeg", eye))
    return plan


def _lesion_codes(lesions: Iterable[Lesion]) -> list[str]:
    """Lesion codes of the masks for these lesions; preretinal haemorrhages belong to HE."""
    kinds = {"HE" if lesion.kind == "PRH" else lesion.kind for lesion in lesions}
    return [code for code in LESIONS if code in kinds]


def plan_segmentation(params: Demo, first: int = 0) -> list[Photograph]:
    """Plan photographs with many lesions, with masks and without grades, in the layout of IDRiD part A."""
    plan = []
    for n in range(params.segmentation):
        who = f"segmentation {first + n}"
        left = bool(numpy_rng(params.seed, who, "eye").random() < 0.5)
        eye = _draw_eye(params, who, left, (2, 3, 2, 4)[n % 4], rich=True)
        folder = SETS["test" if n % (2 * TESTED) == 2 * TESTED - 1 else "train"]
        name = f"IDRiD_{first + n + 1:02d}"
        at = PurePosixPath("idrid", PART_A, MASKS, folder)
        masks = {c: str(at / MASK_FOLDERS[c] / f"{name}_{c}.tif") for c in _lesion_codes(eye.lesions)}
        plan.append(Photograph(f"idrid/{PART_A}/{IMAGES}/{folder}/{name}.jpg", eye, masks))
    return plan


def with_masks(photograph: Photograph) -> Photograph:
    """Return a graded photograph with mask paths added; one that has masks is returned unchanged."""
    if photograph.masks:
        return photograph
    path = PurePosixPath(photograph.path)
    split = {folder: split for split, folder in SETS.items()}.get(path.parent.name)
    image_id = f"B_{split}_{path.stem}" if split else path.stem
    codes = _lesion_codes(photograph.eye.lesions)
    return replace(photograph, masks={code: f"{GRADED_MASKS}/{image_id}_{code}.tif" for code in codes})


def plan_graded(params: Demo, first: int = 0) -> list[Photograph]:
    """Plan single graded photographs in the layout of IDRiD part B; none if there is no part A."""
    plan = []
    for n, grade in enumerate(_grade_deck(params.seed, "graded", GRADED if params.segmentation else 0)):
        eye = _draw_eye(params, f"graded {first + n}", n % 2 == 0, grade)
        folder = SETS["test" if n % TESTED == TESTED - 1 else "train"]
        path = f"idrid/{PART_B}/{IMAGES}/{folder}/IDRiD_{first + n + 1:03d}.jpg"
        plan.append(_labelled(params, path, eye))
    return plan

"""The painted dataset: graded pairs of eyes laid out as EyePACS, lesion masks and further grades as IDRiD.

Everything follows from ``download.demo`` in the parameters; how many processes paint does not matter.
"""

import csv
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from drgrade.data.anatomy import draw_anatomy, draw_camera
from drgrade.data.eyepacs import EyePACS
from drgrade.data.icdr import Lesion, icdr_grade
from drgrade.data.idrid import (
    IMAGES,
    LABEL_COLUMNS,
    LABEL_FILES,
    LABELS,
    MASK_FOLDERS,
    MASKS,
    PART_A,
    PART_B,
    SETS,
    IDRiD,
)
from drgrade.data.painting import Eye, paint
from drgrade.data.pathology import draw_lesions
from drgrade.data.registry import DATASETS, Card
from drgrade.errors import UserError
from drgrade.files import write_file
from drgrade.params import Demo as DemoParams
from drgrade.params import Download
from drgrade.schema import LESIONS
from drgrade.seeding import derive, numpy_rng

log = logging.getLogger(__name__)

PAINTER = 1
"""Raise when the same parameters paint other pixels, so that old pictures are painted anew."""
STAMP = "painted.json"
GRADE_SHARES = (0.30, 0.15, 0.25, 0.15, 0.15)
PIGMENTS = np.array([(0.86, 0.52, 0.24), (0.8, 0.4, 0.1), (0.7, 0.32, 0.08), (0.5, 0.2, 0.07)])
"""Reflectance of a pale, two middling and a dark fundus; eyes are mixtures of these."""
GRADED = 8
"""Photographs in the layout of IDRiD part B, enough to exercise its reader."""
TESTED = 4
"""Every so manyth patient or photograph belongs to the official test set."""


@dataclass(frozen=True)
class Photograph:
    """One picture to paint: where it and its masks go (relative to the root), and what it shows."""

    path: str
    eye: Eye
    masks: dict[str, str]  # lesion code: path

    @property
    def grade(self) -> int:
        """The label that is written."""
        return icdr_grade(self.eye.lesions)


def _draw_eye(seed: int, width: int, who: str, left: bool, grade: int, rich: bool = False) -> Eye:
    """An eye of the patient ``who``; both eyes share what belongs to the patient."""
    side = "left" if left else "right"
    shared, own = numpy_rng(seed, who, "pigment"), numpy_rng(seed, who, side)
    red, green, blue = shared.dirichlet(np.full(len(PIGMENTS), 0.6)) @ PIGMENTS
    pigment = (float(red), float(green), float(blue))
    tigroid = float(shared.beta(1, 2))
    camera = draw_camera(own, width, left)
    anatomy = draw_anatomy(numpy_rng(seed, who, "anatomy"), own, left)
    lesions = draw_lesions(own, grade, camera, anatomy, rich)
    return Eye(camera, anatomy, lesions, pigment, tigroid, derive(seed, who, side, "texture"))  # type: ignore[arg-type]


def _grade_deck(seed: int, what: str, count: int) -> list[int]:
    """Grades for ``count`` eyes in the demo's shares, shuffled; from 5 on every grade comes."""
    ends = np.round(np.cumsum(GRADE_SHARES) * count).astype(int)
    deck = np.repeat(np.arange(5), np.diff(ends, prepend=0))
    for grade in (g for g in range(5) if count >= 5 and g not in deck):
        deck[np.flatnonzero(deck == np.bincount(deck, minlength=5).argmax())[0]] = grade
    return [int(grade) for grade in numpy_rng(seed, what, "grades").permutation(deck)]


def plan_patients(params: DemoParams) -> list[Photograph]:
    """Both eyes of each patient, as EyePACS; the second eye is of the same grade or next to it."""
    rng, plan, number = numpy_rng(params.seed, "patients"), [], 9
    for n, grade in enumerate(_grade_deck(params.seed, "patients", params.patients)):
        number += int(rng.integers(1, 6))
        other = int(np.clip(grade + rng.choice([0, -1, 1], p=[0.7, 0.15, 0.15]), 0, 4))
        folder = "test" if n % TESTED == TESTED - 1 else "train"
        for side, eye_grade in (("left", grade), ("right", other)):
            eye = _draw_eye(params.seed, params.width, f"patient {number}", side == "left", eye_grade)
            plan.append(Photograph(f"eyepacs/{folder}/{number}_{side}.jpeg", eye, {}))
    return plan


def _lesion_codes(lesions: Iterable[Lesion]) -> list[str]:
    """Kinds of masks these lesions leave; a preretinal haemorrhage is one of HE."""
    kinds = {"HE" if lesion.kind == "PRH" else lesion.kind for lesion in lesions}
    return [code for code in LESIONS if code in kinds]


def plan_segmentation(params: DemoParams) -> list[Photograph]:
    """Photographs rich in lesions, with masks, in the layout of IDRiD part A."""
    plan = []
    for n in range(params.segmentation):
        who = f"segmentation {n}"
        left = bool(numpy_rng(params.seed, who, "eye").random() < 0.5)
        eye = _draw_eye(params.seed, params.width, who, left, (2, 3, 2, 4)[n % 4], rich=True)
        folder = SETS["test" if n % (2 * TESTED) == 2 * TESTED - 1 else "train"]
        name = f"IDRiD_{n + 1:02d}"
        at = PurePosixPath("idrid", PART_A, MASKS, folder)
        masks = {c: str(at / MASK_FOLDERS[c] / f"{name}_{c}.tif") for c in _lesion_codes(eye.lesions)}
        plan.append(Photograph(f"idrid/{PART_A}/{IMAGES}/{folder}/{name}.jpg", eye, masks))
    return plan


def plan_graded(params: DemoParams) -> list[Photograph]:
    """Single graded photographs, in the layout of IDRiD part B."""
    plan = []
    for n, grade in enumerate(_grade_deck(params.seed, "graded", GRADED)):
        eye = _draw_eye(params.seed, params.width, f"graded {n}", n % 2 == 0, grade)
        folder = SETS["test" if n % TESTED == TESTED - 1 else "train"]
        plan.append(Photograph(f"idrid/{PART_B}/{IMAGES}/{folder}/IDRiD_{n + 1:03d}.jpg", eye, {}))
    return plan


def _painted(root: Path, photograph: Photograph) -> bool:
    return all((root / path).exists() for path in (photograph.path, *photograph.masks.values()))


def _paint_file(root: Path, photograph: Photograph) -> None:
    """Paint one picture and its masks, each file whole or not at all."""
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    image, masks = paint(photograph.eye)
    for code, path in photograph.masks.items():
        mask = Image.fromarray(masks[code].astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, 255, 0, 0])  # lesions red, as in IDRiD
        buffer = io.BytesIO()
        mask.save(buffer, "TIFF", compression="tiff_lzw")
        write_file(root / path, buffer.getvalue())
    quality = [cv2.IMWRITE_JPEG_QUALITY, photograph.eye.camera.quality]
    write_file(root / photograph.path, cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes())


def _write_csv(path: Path, rows: list[list[object]], end: str = "\n") -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    write_file(path, text.getvalue().encode())


def _oedema_risk(eye: Eye) -> int:
    """Macular oedema as in IDRiD: hard exudates none: 0, far: 1, within a disc diameter of the fovea 2."""
    distances = [np.hypot(lesion.x, lesion.y) for lesion in eye.lesions if lesion.kind == "EX"]
    return 0 if not distances else 2 if min(distances) <= 2 * eye.anatomy.disc_axes[1] else 1


def _write_labels(root: Path, patients: list[Photograph], graded: list[Photograph]) -> None:
    """The label files of EyePACS and of IDRiD part B, down to their empty columns and line ends."""
    named = [(PurePosixPath(p.path), p.grade) for p in patients]
    train = [[path.stem, grade] for path, grade in named if path.parts[1] == "train"]
    test = [[path.stem, grade] for path, grade in named if path.parts[1] == "test"]
    # Patients stay whole: the two eyes of every second test patient make the public (validation) part.
    usage = [[*row, ("Public", "Private")[n // 2 % 2]] for n, row in enumerate(test)]
    _write_csv(root / "eyepacs" / "trainLabels.csv", [["image", "level"], *train])
    _write_csv(root / "eyepacs" / "retinopathy_solution.csv", [["image", "level", "Usage"], *usage])
    for split, folder in SETS.items():
        rows: list[list[object]] = [[*LABEL_COLUMNS, *[""] * 9]]
        for photograph in graded:
            path = PurePosixPath(photograph.path)
            if path.parent.name == folder:
                rows.append([path.stem, photograph.grade, _oedema_risk(photograph.eye), *[""] * 9])
        _write_csv(root / "idrid" / PART_B / LABELS / LABEL_FILES[split], rows, "\r\n")


def _clear(root: Path, stamp: str) -> None:
    """Remove what other parameters painted.

    Raises:
        UserError: there are files that this module has not painted.
    """
    file = root / STAMP
    if file.exists() and file.read_text() == stamp:
        return
    for folder in (root / "eyepacs", root / "idrid"):
        if folder.exists() and not file.exists():
            raise UserError(
                f"{folder}: not painted by drgrade; move it away or set DRGRADE_DEMO_ROOT elsewhere"
            )
        if folder.exists():
            shutil.rmtree(folder)
    write_file(file, stamp.encode())


@DATASETS.register("demo")
class Demo:
    """Painted photographs in the layouts of EyePACS (``eyepacs/``) and IDRiD (``idrid/``)."""

    card = Card(
        name="demo",
        title="Painted fundus photographs",
        version=str(PAINTER),
        licence="Apache-2.0",
        source="painted by drgrade",
        access="painted",
        citation="-",
        instructions="nothing to do: drgrade download paints them into {root}",
    )
    parts = (("eyepacs", EyePACS), ("idrid", IDRiD))

    def download(self, root: Path, params: Download) -> None:
        """Paint what is not there yet; pictures of other parameters are replaced."""
        _clear(root, json.dumps({"painter": PAINTER, **params.demo.model_dump()}, sort_keys=True) + "\n")
        patients, graded = plan_patients(params.demo), plan_graded(params.demo)
        plan = [*patients, *plan_segmentation(params.demo), *graded]
        missing = [photograph for photograph in plan if not _painted(root, photograph)]
        if missing:
            workers = min(len(os.sched_getaffinity(0)), 16)
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(partial(_paint_file, root), missing, chunksize=4))
        _write_labels(root, patients, graded)
        log.info("%s: %d photographs, %d of them painted now", root, len(plan), len(missing))

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of both layouts; see :class:`Dataset`."""
        tables = []
        for name, part in self.parts:
            table = part().read(root / name)
            table["path"] = [f"{name}/{path}" if isinstance(path, str) else None for path in table["path"]]
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Exact masks of the photographs in the layout of IDRiD part A."""
        return IDRiD().masks(root / "idrid", image_id)

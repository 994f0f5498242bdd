"""Grade new photographs with a trained model, from the file to a row of a CSV."""

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from drgrade.data.listing import PHOTOGRAPHS, escaped, walk
from drgrade.data.patients import from_name
from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.files import atomic_write
from drgrade.grading.assembly import Assembly, assemble
from drgrade.grading.base import Photographs
from drgrade.grading.models import MODEL
from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError
from drgrade.images.rules import RGBImage
from drgrade.images.survey import Survey, survey
from drgrade.images.workers import in_order
from drgrade.params import Crop
from drgrade.schema import GRADE_NAMES, GRADES

log = logging.getLogger(__name__)

BATCH = 64
"""Photographs held in memory at a time."""
WORTH = 16
"""Number of photographs from which starting worker processes pays."""
NO_RETINA = "no retina found"
COLUMNS = ("quality", "fov", "sharpness", "exposure", "contrast")


class Prepared(NamedTuple):
    """One photograph prepared for grading, or the reason why it cannot be graded."""

    crop: RGBImage | None = None
    rule: str = ""
    status: str = "failed"
    reason: str = ""
    quality: Survey = Survey()


def photographs_in(paths: list[Path]) -> list[Path]:
    """Return the given files, and the photographs in given folders (found by :func:`walk`), sorted.

    Logs how many files of a folder are not read as photographs.

    Raises:
        UserError: a path does not exist or cannot be read, or there are no photographs.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = [Path(entry.path) for _, entry in walk(path)]
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}); correct its permissions"
            ) from None
        photographs = [file for file in inside if file.suffix.lower() in PHOTOGRAPHS]
        others = [file for file in inside if file.suffix.lower() not in PHOTOGRAPHS]
        found += photographs
        if others:
            told = path, len(others), escaped(str(others[0])), ", ".join(PHOTOGRAPHS)
            log.warning("%s: files that are not read: %d, such as %s; photographs end in %s", *told)
    if not found:
        raise UserError(f"{paths[0]}: holds no photographs ({', '.join(PHOTOGRAPHS)})")
    return found


def predict_files(
    paths: list[Path], folder: Path, out: Path, *, force: bool = False, workers: int = 1
) -> None:
    """Write a CSV: file, status, reason, score (expected grade), grade, its name, p0-p4, quality, crop rule.

    A photograph that cannot be read or shows no retina gets a row with a reason; the others are graded.
    Models that read both eyes find them by file names such as ``17_left.jpeg`` and ``17_right.jpeg``.

    Args:
        paths: photographs, and folders of them.
        folder: folder of a model, or its ``model.json``.
        out: the CSV.
        force: grade photographs without a retina too; their status stays.
        workers: processes that read photographs.

    Raises:
        UserError: there is no such model, one that it builds on is missing, or ``out`` cannot be written.
    """
    model = assemble(folder.parent if folder.name == MODEL else folder)
    _check_writable(out)
    files = photographs_in(paths)
    batches, place = _batches(files), {file: number for number, file in enumerate(files)}
    prepare = partial(_prepare_all, model.grader.crop)
    prepared = in_order(prepare, batches, min(workers, len(files) // WORTH))
    tables: list[pd.DataFrame] = []
    for batch, ready in zip(batches, prepared, strict=True):
        tables.append(_grade(batch, ready, model, force).assign(place=[place[file] for file in batch]))
        log.info("%d of %d photographs", sum(map(len, tables)), len(files))
    table = pd.concat(tables).sort_values("place").drop(columns="place")
    with atomic_write(out) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.4f")
    log.info(
        "%s: %s", out, ", ".join(f"{n} {status}" for status, n in table["status"].value_counts().items())
    )


def _patient(file: Path) -> str:
    """Patient of a photograph by the name of its file, within its folder; the file where it names none."""
    patient, _ = from_name(file.stem)
    return str(file.parent / patient) if patient else str(file)


def _batches(files: list[Path]) -> list[list[Path]]:
    """Divide photographs into batches of about :data:`BATCH` that keep those of a patient together."""
    patients: dict[str, list[Path]] = {}
    for file in files:
        patients.setdefault(_patient(file), []).append(file)
    batches: list[list[Path]] = [[]]
    for together in patients.values():
        if batches[-1] and len(batches[-1]) + len(together) > BATCH:
            batches.append([])
        batches[-1] += together
    return batches


def _check_writable(out: Path) -> None:
    """Raise a UserError if ``out`` cannot be written, before hours of work."""
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); name another file with --out"
        ) from None


def _prepare_all(options: Crop, files: list[Path]) -> list[Prepared]:
    return [_prepare(path, options) for path in files]


def _prepare(path: Path, options: Crop) -> Prepared:
    """Survey and crop one photograph."""
    found = survey(path)
    if found.reason:
        return Prepared(reason=found.reason)
    try:
        crop, _, rule = crop_photograph(path, options)
    except ReadError as error:
        return Prepared(reason=str(error))
    if found.retina:
        return Prepared(crop, rule, "ok", "", found)
    return Prepared(crop, rule, NO_RETINA, "neither a field of view nor the colours of a retina", found)


def _grade(files: list[Path], prepared: list[Prepared], model: Assembly, force: bool) -> pd.DataFrame:
    size = model.grader.crop.size
    table = pd.DataFrame(
        {
            "file": [escaped(str(path)) for path in files],
            "status": [one.status for one in prepared],
            "reason": [one.reason for one in prepared],
        }
    )
    graded = np.array([one.status == "ok" or (force and one.crop is not None) for one in prepared])
    images = np.stack(
        [np.zeros((size, size, 3), np.uint8) if one.crop is None else one.crop for one in prepared]
    )
    probabilities = np.full((len(files), len(GRADES)), np.nan)
    score = np.full(len(files), np.nan)
    eyes = [from_name(path.stem)[1] for path in files]
    known = pd.DataFrame(
        {"image_id": table["file"], "patient_id": list(map(_patient, files)), "eye": eyes, "grade": pd.NA}
    )
    if graded.any():
        rows = known.assign(row=range(len(files)))[graded].reset_index(drop=True)
        output = model.grader.predict(model.completed(Photographs(images, rows)))
        probabilities[graded], score[graded] = output.probabilities, output.score
    grades = to_grades(np.nan_to_num(score))
    table["score"] = score
    table["grade"] = pd.array(np.where(graded, grades, 0), "Int8")
    table.loc[~graded, "grade"] = pd.NA
    table["name"] = np.where(graded, np.array(GRADE_NAMES)[grades], "")
    for grade in GRADES:
        table[f"p{grade}"] = probabilities[:, grade]
    for name in COLUMNS:
        table[name] = [getattr(one.quality, name) for one in prepared]
    table["crop_rule"] = [one.rule for one in prepared]
    table["use"] = "research only, not a diagnosis"
    return table

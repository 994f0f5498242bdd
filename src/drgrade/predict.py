"""Grade new photographs with a trained model, from the file to a row of a CSV."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.files import atomic_write
from drgrade.grading.base import Grader, Photographs
from drgrade.grading.models import load_model
from drgrade.images.crop import crop_photograph
from drgrade.images.read import ReadError
from drgrade.schema import GRADE_NAMES, GRADES

log = logging.getLogger(__name__)

BATCH = 64  # photographs held in memory at a time
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}


def photographs_in(paths: list[Path]) -> list[Path]:
    """Files as they are, folders opened (by suffix, sorted).

    Raises:
        UserError: a path does not exist, or nothing is left.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside = sorted(item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES)
        found += inside if path.is_dir() else [path]
    if not found:
        raise UserError(f"{paths[0]}: holds no photographs ({', '.join(sorted(SUFFIXES))})")
    return found


def predict_files(paths: list[Path], model: Path, out: Path) -> None:
    """Write a CSV: file, status, reason, score (expected grade), grade, its name, p0-p4.

    A photograph that cannot be read is a row with a reason; the rest go on.

    Raises:
        UserError: there is no such model, or it builds on models of other experiments.
    """
    grader = load_model(model)
    if grader.params.members:
        raise UserError(
            f"{model}: builds on the models of {', '.join(grader.params.members)}, which single photographs "
            "do not go through; name one of those"
        )
    files = photographs_in(paths)
    tables = []
    for start in range(0, len(files), BATCH):
        tables.append(_predict_batch(files[start : start + BATCH], grader))
        log.info("%d of %d photographs", min(start + BATCH, len(files)), len(files))
    with atomic_write(out) as partial:
        pd.concat(tables).to_csv(partial, index=False, float_format="%.4f")


def _predict_batch(files: list[Path], grader: Grader) -> pd.DataFrame:
    crop = grader.crop
    images = np.zeros((len(files), crop.size, crop.size, 3), np.uint8)
    reasons = []
    for place, path in enumerate(files):
        try:
            images[place], _, _ = crop_photograph(path, crop)
            reasons.append("")
        except ReadError as error:
            reasons.append(str(error))
    readable = np.array([not reason for reason in reasons])
    table = pd.DataFrame(
        {"file": [str(path) for path in files], "status": np.where(readable, "ok", "failed")}
    )
    table["reason"] = reasons
    probabilities = np.full((len(files), len(GRADES)), np.nan)
    score = np.full(len(files), np.nan)
    unknown = pd.DataFrame({"image_id": table["file"], "patient_id": None, "eye": None, "grade": pd.NA})
    output = grader.predict(Photographs(images, unknown.assign(row=range(len(files)))[readable]))
    probabilities[readable], score[readable] = output.probabilities, output.score
    grades = to_grades(np.nan_to_num(score))
    table["score"] = score
    table["grade"] = pd.array(np.where(readable, grades, 0), "Int8")
    table.loc[~readable, "grade"] = pd.NA
    table["name"] = np.where(readable, np.array(GRADE_NAMES)[grades], "")
    for grade in GRADES:
        table[f"p{grade}"] = probabilities[:, grade]
    table["use"] = "research only, not a diagnosis"
    return table

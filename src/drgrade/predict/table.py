"""The table of predictions: its columns, and those that are known before a photograph is graded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.data.listing import escaped
from drgrade.data.patients import from_name
from drgrade.images.prepare import Prepared

QUALITY = ("quality", "fov", "sharpness", "exposure", "contrast")
USE = "research only, not a diagnosis"
COLUMNS = {
    "file": "string",
    "status": "string",  # ok, failed, no retina found
    "reason": "string",
    "score": "float64",  # expected grade, 0-4, not calibrated
    "grade": "Int8",
    "name": "string",
    "p0": "float64",  # calibrated where the column calibration names a method
    "p1": "float64",
    "p2": "float64",
    "p3": "float64",
    "p4": "float64",
    "p_referable": "float64",
    "referable": "boolean",  # missing without an operating point
    "grades": "string",  # set of grades that holds the true one with a stated probability
    "abstain": "boolean",  # whether this set is so large that a clinician should grade
    "patient": "string",
    "eye": "string",  # left, right or missing
    **dict.fromkeys(QUALITY, "float64"),
    "crop_rule": "string",
    "calibration": "string",
    "use": "string",
}
"""Columns of a table of predictions with their types; docs/predict.md says more."""


def set_text(grades: npt.NDArray[np.bool_]) -> str:
    """Return a set of grades (5,) as text: ``2``, ``1-3`` for neighbours, ``0 2`` with gaps; may be empty."""
    found = np.flatnonzero(grades)
    if len(found) > 1 and found[-1] - found[0] == len(found) - 1:
        return f"{found[0]}-{found[-1]}"
    return " ".join(map(str, found))


def patient_and_eye(file: Path) -> tuple[str, str | None]:
    """Return patient and eye by a photograph's name, within its folder; the file itself if it names none."""
    patient, eye = from_name(file.stem)
    return (str(file.parent / patient), eye) if patient else (str(file), None)


def described(files: Sequence[Path], prepared: Sequence[Prepared]) -> pd.DataFrame:
    """Columns that are known before grading, a row for each photograph."""
    owners = [patient_and_eye(file) for file in files]
    table = pd.DataFrame(
        {
            "file": [escaped(str(path)) for path in files],
            "status": [one.status for one in prepared],
            "reason": [one.reason for one in prepared],
            "patient": [escaped(patient) for patient, _ in owners],
            "eye": pd.array([eye for _, eye in owners], "string"),
            "crop_rule": [one.rule for one in prepared],
        }
    )
    return table.assign(**{name: [getattr(one.survey, name) for one in prepared] for name in QUALITY})

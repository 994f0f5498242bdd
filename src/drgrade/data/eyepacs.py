"""EyePACS as released for the Kaggle competition of 2015.

Layout: ``trainLabels.csv`` (image, level), ``train/10_left.jpeg``; after the competition also
``retinopathy_solution.csv`` (image, level, Usage) and ``test/1_left.jpeg``.
"""

from pathlib import Path

import pandas as pd

from drgrade.data.labels import photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, require
from drgrade.params import Download

USAGE = {"public": "val", "private": "test"}
"""The two leaderboards of the competition serve as validation and test."""


def _row(name: str, path: str | None, grade: int | None, split: str) -> tuple[str | int | None, ...]:
    patient, _, side = name.rpartition("_")
    eye = side if patient and side in ("left", "right") else None
    return name, path, patient if eye else name, eye, grade, "grading", split


@DATASETS.register("eyepacs")
class EyePACS:
    """Both eyes of each patient, graded 0-4."""

    card = Card(
        name="eyepacs",
        title="EyePACS (Kaggle Diabetic Retinopathy Detection)",
        version="2015",
        licence="Kaggle competition rules: research use, no redistribution",
        source="https://www.kaggle.com/c/diabetic-retinopathy-detection",
        access="form",
        citation="Cuadros & Bresnick, J Diabetes Sci Technol 3(3), 2009",
        instructions=(
            "accept the rules at {source}, then put trainLabels.csv and the folder train/ into {root} "
            "(and, for the official split, retinopathy_solution.csv and test/)"
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the user has put the files there."""
        require(self.card, root, "trainLabels.csv", "train")

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of the training part and, when there, of the test part; see :class:`Dataset`."""
        rows = []
        parts = [("train", "trainLabels.csv")]
        if (root / "retinopathy_solution.csv").exists() or (root / "test").is_dir():
            parts.append(("test", "retinopathy_solution.csv"))
        for part, file in parts:
            images = {name: f"{part}/{path.name}" for name, path in photographs(root / part).items()}
            for label in read_labels(root / file, "image", "level", ("Usage",)):
                split = USAGE.get(label.other["Usage"].lower(), part)
                rows.append(_row(label.image, images.pop(label.image, None), label.grade, split))
            rows += [_row(name, path, None, part) for name, path in images.items()]
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """None: EyePACS marks no lesions."""
        return {}

"""EyePACS, as released for the Kaggle competition of 2015.

Layout: ``trainLabels.csv`` (image, level), ``train/10_left.jpeg``; after the competition also
``retinopathy_solution.csv`` (image, level, Usage) and ``test/1_left.jpeg``. Quality labels are those of
EyeQ (Fu et al., MICCAI 2019), if ``Label_EyeQ_train.csv`` and ``Label_EyeQ_test.csv`` are in the same folder.
"""

import logging
from pathlib import Path

import pandas as pd

from drgrade.data.kaggle import bring
from drgrade.data.labels import key, match, photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count
from drgrade.errors import UserError
from drgrade.params import Download

log = logging.getLogger(__name__)

USAGE = {"public": "val", "private": "test"}
"""Photographs of the public leaderboard are used for validation, those of the private one for the test."""
TRAIN, TEST = "trainLabels.csv", "retinopathy_solution.csv"
QUALITY_FILES = ("Label_EyeQ_train.csv", "Label_EyeQ_test.csv")
QUALITIES = ("good", "usable", "reject")
"""Meaning of EyeQ's labels 0, 1 and 2."""


def _row(
    name: str, path: str | None, grade: int | None, quality: str | None, split: str
) -> tuple[str | int | None, ...]:
    patient, _, side = name.rpartition("_")
    eye = side if patient and side in ("left", "right") else None
    return name, path, patient if eye else name, eye, grade, quality, "grading", split


def _qualities(root: Path) -> dict[str, str]:
    """Return EyeQ's quality labels by image name, from those of its files that exist."""
    found = {}
    for file in (root / name for name in QUALITY_FILES):
        for label in read_labels(file, "image", "quality") if file.exists() else ():
            if label.grade is None or label.grade >= len(QUALITIES):
                raise UserError(
                    f"{file}: image {label.image!r}: quality {label.grade} is not 0, 1 or 2; fetch it again"
                )
            found[key(label.image)] = QUALITIES[label.grade]
    return found


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
            "accept the rules at {source} and set up Kaggle credentials (~/.kaggle/kaggle.json), or put "
            "trainLabels.csv and the folder train/ into {root} (and, for the official split, "
            "retinopathy_solution.csv, which is not among the competition's files, and test/)"
        ),
        kaggle="diabetic-retinopathy-detection",
        counts={
            "train": Count(35126, TRAIN, (25810, 2443, 5292, 873, 708)),
            "val": Count(10906, TEST),
            "test": Count(42670, TEST),
            "val+test": Count(53576, TEST, (39533, 3762, 7861, 1214, 1206)),
        },
        defects=(
            "The photographs of RLDR are from it; the labels of EyeQ are of it.",
            "RETFound's and FLAIR's weights were pretrained on its photographs: do not test them on it.",
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Fetch what is missing from Kaggle: training part, and test part if its label file exists."""
        names = (TRAIN, "train")
        bring(self.card, root, (*names, "test") if (root / TEST).exists() else names)

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows of the training part and, if present, of the test part; see :class:`Dataset`."""
        rows, quality = [], _qualities(root)
        for part, file in (("train", TRAIN), ("test", TEST)):
            images, labels = photographs(root / part), []
            if part == "train" or (root / file).exists():
                labels = read_labels(root / file, "image", "level", ("Usage",))
            elif images:
                log.warning("%s: not found, so the photographs of test/ have no grades", root / file)
            for name, path, label in match(labels, images, root / file):
                split = USAGE.get(label.other["Usage"].lower(), part) if label else part
                place, grade = f"{part}/{path.name}" if path else None, label.grade if label else None
                rows.append(_row(name, place, grade, quality.get(key(name)), split))
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return an empty dict: EyePACS has no lesion masks."""
        return {}

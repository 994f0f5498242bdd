"""Your own photographs: a folder ``images/`` and, if they are graded, a file ``labels.csv`` beside it.

Its columns are image, grade and, if known, patient, eye (left, right) and quality (good, usable, reject).
A missing patient or eye is taken from DICOM tags or from file names such as ``17_left.jpg``
(:mod:`drgrade.data.patients`). Patient ids appear in the tables unchanged: pseudonymise them first.
"""

import logging
from collections import defaultdict
from pathlib import Path

import pandas as pd

from drgrade.data.labels import match, photographs, read_labels
from drgrade.data.listing import PHOTOGRAPHS, escaped, walk
from drgrade.data.patients import EYES, Source, from_name, from_tags, patient_ids
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, require
from drgrade.params import Download

log = logging.getLogger(__name__)

LABELS = "labels.csv"
QUALITIES = ("good", "usable", "reject")


@DATASETS.register("folder")
class Folder:
    """The user's own photographs, with or without grades."""

    card = Card(
        name="folder",
        title="Your own photographs",
        version="-",
        licence="yours",
        source="your own",
        access="form",
        citation="-",
        instructions="put the photographs into {root}/images and their grades, if there are any, into "
        "{root}/labels.csv, with the columns image, grade and, if known, patient, eye, quality",
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the photographs are there; the label file is optional."""
        require(self.card, root, "images")

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows of labels.csv and of photographs without a label; see :class:`Dataset`."""
        file, images = root / LABELS, photographs(root / "images")
        _warn_of_others(root / "images", {path.name for path in images.values()})
        allowed = {"eye": EYES.keys(), "quality": set(QUALITIES)}
        labels = []
        if file.exists():
            labels = read_labels(file, "image", "grade", ("patient", *allowed), allowed=allowed, blank=True)
        else:
            log.warning("%s: not found, so none of the photographs is graded", file)
        rows, sources = [], []
        for name, path, label in match(labels, images, file):
            tagged, tagged_eye = from_tags(path) if path and path.suffix.lower() == ".dcm" else ("", None)
            named, named_eye = from_name(name)
            told = label.other if label else defaultdict(str)
            eye = EYES.get(told["eye"].lower()) or tagged_eye or named_eye
            quality = told["quality"].lower() or None
            place = f"images/{path.name}" if path else None
            rows.append((name, place, None, eye, label.grade if label else None, quality, "grading", None))
            sources.append(Source(name, told["patient"], tagged, named))
        table = pd.DataFrame(rows, columns=list(READ_COLUMNS))
        there = table["path"].notna()
        table.loc[~there, "patient_id"] = table["image_id"]  # never used: a label without a photograph
        known = [source for source, has_file in zip(sources, there, strict=True) if has_file]
        table.loc[there, "patient_id"] = patient_ids(known, file)
        return table

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return an empty dict: this layout has no lesion masks."""
        return {}


def _warn_of_others(folder: Path, read: set[str]) -> None:
    """Log files that are not read as photographs, such as those in subfolders."""
    others = [path for path, _ in walk(folder) if path not in read] if folder.is_dir() else []
    if others:
        log.warning(
            "%s: %d files are not read, such as %s; photographs lie directly there and end in %s",
            folder, len(others), escaped(others[0]), ", ".join(PHOTOGRAPHS),
        )  # fmt: skip

"""Your own photographs: ``images/``, and beside it ``labels.csv`` if they are graded.

Its columns are image, grade and, if known, patient, eye (left, right) and quality (good, usable, reject).
Where it gives no patient or eye, the tags of DICOM files or names such as ``17_left.jpg`` do
(:mod:`drgrade.data.patients`). Patient ids are used as they are and appear in the tables: pseudonymise first.
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
    """Photographs of the user's own, graded or not."""

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
        """Check that the photographs are there; without a label file none is graded."""
        require(self.card, root, "images")

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of labels.csv and of photographs without a line in it; see :class:`Dataset`."""
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
        """None: the layout holds no masks."""
        return {}


def _warn_of_others(folder: Path, read: set[str]) -> None:
    """Log the files that are taken for no photographs, such as those in folders of their own."""
    others = [path for path, _ in walk(folder) if path not in read] if folder.is_dir() else []
    if others:
        log.warning(
            "%s: %d files are not read, such as %s; photographs lie directly there and end in %s",
            folder, len(others), escaped(others[0]), ", ".join(PHOTOGRAPHS),
        )  # fmt: skip

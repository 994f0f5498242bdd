"""Your own photographs: ``images/`` beside ``labels.csv``.

Its columns are image, grade and, if known, patient, eye (left, right) and quality (good, usable, reject).
Where it tells no patient or eye, the tags of a DICOM file do, then names such as ``17_left.jpg``. Patient ids
are used as they are and appear in the tables: pseudonymise first.
"""

import logging
import os
from pathlib import Path

import pandas as pd

from drgrade.data.labels import photographs, read_labels, stem
from drgrade.data.listing import PHOTOGRAPHS
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, require
from drgrade.errors import UserError
from drgrade.params import Download

log = logging.getLogger(__name__)

EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right", "": None}
QUALITIES = ("good", "usable", "reject")


def _from_name(name: str) -> tuple[str, str | None]:
    """Patient and eye as the name tells them."""
    patient, _, side = name.rpartition("_")
    eye = EYES.get(side.lower()) if patient else None
    return (patient, eye) if eye else (name, None)


def _from_tags(path: Path) -> tuple[str, str | None]:
    """Patient and eye as a DICOM file's tags tell them; empty and None where they do not."""
    import pydicom

    tags = ["PatientID", "ImageLaterality", "Laterality"]
    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
        side = str(found.get("ImageLaterality") or found.get("Laterality") or "")
        return str(found.get("PatientID") or "").strip(), EYES.get(side.strip().lower())
    except Exception:  # of a damaged file, anything; its row gets a reason when its header is read
        return "", None


def _whose(name: str, path: Path | None, patient: str = "", side: str = "") -> tuple[str, str | None]:
    """Patient and eye of a photograph: as labelled, else as tagged, else as named."""
    named, named_eye = _from_name(name)
    eye = EYES[side]
    tagged, tagged_eye = "", None
    if path is not None and path.suffix.lower() == ".dcm" and not (patient and eye):
        tagged, tagged_eye = _from_tags(path)
    return patient or tagged or named, eye or tagged_eye or named_eye


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
        instructions="put the photographs into {root}/images and their grades into {root}/labels.csv, "
        "with the columns image, grade and, if known, patient, eye, quality",
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the files are there."""
        require(self.card, root, "images", "labels.csv")

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of labels.csv and of photographs without a line in it; see :class:`Dataset`."""
        file, rows = root / "labels.csv", []
        images = photographs(root / "images")
        _warn_of_others(root / "images", {path.name for path in images.values()})
        seen: set[str] = set()
        for label in read_labels(file, "image", "grade", ("patient", "eye", "quality"), blank=True):
            name, where = stem(label.image), f"{file}: image {label.image!r}"
            side, quality = label.other["eye"].lower(), label.other["quality"].lower()
            if "/" in name or "\\" in name or name in seen:
                raise UserError(f"{where}: a name of images/ is needed, each once; correct it")
            if side not in EYES:
                raise UserError(f"{where}: eye {label.other['eye']!r} is not left or right; correct it")
            if quality not in ("", *QUALITIES):
                raise UserError(f"{where}: quality {quality!r} is not {', '.join(QUALITIES)}; correct it")
            seen.add(name)
            path = images.pop(name, None)
            whose = _whose(name, path, label.other["patient"], side)
            rows.append((name, _relative(path), *whose, label.grade, quality or None, "grading", None))
        for name, path in images.items():
            rows.append((name, _relative(path), *_whose(name, path), None, None, "grading", None))
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """None: the layout holds no masks."""
        return {}


def _warn_of_others(folder: Path, read: set[str]) -> None:
    """Log the files that are taken for no photographs, such as those in folders of their own."""
    others = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in (set(names) - read if parent == str(folder) else names)
        if not name.startswith(".")
    )
    if others:
        log.warning(
            "%s: %d files are not read, such as %s; photographs lie directly there and end in %s",
            folder, len(others), others[0].relative_to(folder), ", ".join(PHOTOGRAPHS),
        )  # fmt: skip


def _relative(path: Path | None) -> str | None:
    return f"images/{path.name}" if path else None

"""Your own photographs: ``images/`` beside ``labels.csv`` with image, grade and, if known, patient and eye.

Without a patient column, names such as ``17_left.jpg`` still say which two belong together.
"""

from pathlib import Path

import pandas as pd

from drgrade.data.labels import PHOTOGRAPHS, photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, require
from drgrade.errors import UserError
from drgrade.params import Download

EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right", "": None}


def _from_name(name: str) -> tuple[str, str | None]:
    """Patient and eye as the name tells them."""
    patient, _, side = name.rpartition("_")
    eye = EYES.get(side.lower()) if patient else None
    return (patient, eye) if eye else (name, None)


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
        "with the columns image, grade and, if known, patient, eye",
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the files are there."""
        require(self.card, root, "images", "labels.csv")

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of labels.csv and of photographs without a line in it; see :class:`Dataset`."""
        file, rows = root / "labels.csv", []
        images = {name: f"images/{path.name}" for name, path in photographs(root / "images").items()}
        seen: set[str] = set()
        for label in read_labels(file, "image", "grade", ("patient", "eye"), blank=True):
            ending = Path(label.image).suffix
            name = label.image.removesuffix(ending) if ending.lower() in PHOTOGRAPHS else label.image
            if "/" in name or "\\" in name or name in seen:
                raise UserError(
                    f"{file}: image {label.image!r}: a name of images/ is needed, each once; correct it"
                )
            if label.other["eye"].lower() not in EYES:
                raise UserError(
                    f"{file}: image {name!r}: eye {label.other['eye']!r} is not left or right; correct it"
                )
            seen.add(name)
            patient, eye = _from_name(name)
            patient, eye = label.other["patient"] or patient, EYES[label.other["eye"].lower()] or eye
            rows.append((name, images.pop(name, None), patient, eye, label.grade, "grading", None))
        rows += [(name, path, *_from_name(name), None, "grading", None) for name, path in images.items()]
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """None: the layout holds no masks."""
        return {}

"""DDR (Li et al., 2019): graded photographs, and some of them with lesion masks.

Layout: ``DR_grading/train.txt`` ("007-0004-000.jpg 0", 5 for ungradable), ``DR_grading/train/``, the same for
valid and test; ``lesion_segmentation/train/image/`` with masks in ``label/MA/`` (of valid in ``segmentation
label/``), and HE, EX, SE. There are no patient ids. Photographs of both tasks share one naming scheme, so the
file name is used as patient id: a graded photograph and its copy with masks stay in the same split.
"""

from pathlib import Path

import pandas as pd

from drgrade.data.labels import Label, Problems, key, match, photographs
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count, require
from drgrade.errors import UserError
from drgrade.params import Download
from drgrade.schema import GRADES, LESIONS

PARTS = {"train": "train", "valid": "val", "test": "test"}
"""Folder of each official split."""
GRADING, SEGMENTATION = "DR_grading", "lesion_segmentation"
UNGRADABLE = 5
MASK_FOLDERS = ("label", "segmentation label", "annotations")
MASK_ENDINGS = (".tif", ".tiff", ".png")


def _read_grades(file: Path) -> list[Label]:
    """Read image names and grades, 0 to 5, in the order of the file."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; put the dataset's label file there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file ({error}); fetch it again") from None
    found, problems = dict[str, Label](), Problems()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        *name, grade = line.rsplit(maxsplit=1)
        if not name or grade not in {str(grade) for grade in (*GRADES, UNGRADABLE)}:
            problems.append(f"line {number}: needs an image and a grade of 0 to 5; correct it")
            continue
        label = Label(name[0].strip(), int(grade), {})
        if found.setdefault(key(label.image), label).grade != label.grade:
            problems.append(f"line {number}: image {name[0]!r} has another label already; keep one")
    problems.stop(file)
    return list(found.values())


def _row(
    subset: str, part: str, name: str, path: str | None, grade: int | None
) -> tuple[str | int | None, ...]:
    quality = "reject" if grade == UNGRADABLE else None
    grade = None if quality else grade
    return f"{subset}_{part}_{name}", path, name, None, grade, quality, subset, PARTS[part]


@DATASETS.register("ddr")
class DDR:
    """Photographs graded 0-4 or ungradable, in three official parts; 757 more files with lesion masks."""

    card = Card(
        name="ddr",
        title="DDR",
        version="2019",
        licence="none stated",
        source="https://github.com/nkicsl/DDR-dataset",
        access="form",
        citation="Li et al., Information Sciences 501, 2019",
        instructions=(
            "fetch the archive that {source} links to and unpack it so that DR_grading/ and, for masks, "
            "lesion_segmentation/ lie in {root}"
        ),
        counts={
            "train": Count(6835, f"{GRADING}/train.txt"),
            "val": Count(2733, f"{GRADING}/valid.txt"),
            "test": Count(4105, f"{GRADING}/test.txt"),
            "train+val+test": Count(13673, GRADING, (6266, 630, 4477, 236, 913)),
            "segmentation train": Count(383),
            "segmentation val": Count(149),
            "segmentation test": Count(225),
        },
        defects=(
            "Patients are not named, so that two eyes of one person may be in different parts.",
            "Photographs with masks and graded ones share one scheme of names; the same name is kept in one "
            "part.",
            "FLAIR's weights were pretrained on it, among other datasets.",
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the user has put the files into ``root``."""
        require(self.card, root, GRADING)

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows of both tasks; see :class:`Dataset`. Parts without any files are skipped."""
        rows = []
        for part in PARTS:
            images, file = photographs(root / GRADING / part), root / GRADING / f"{part}.txt"
            labels = _read_grades(file) if images or file.exists() else []
            for name, path, label in match(labels, images, file):
                place = path.relative_to(root).as_posix() if path else None
                rows.append(_row("grading", part, name, place, label.grade if label else None))
        for part in PARTS:
            for image in photographs(root / SEGMENTATION / part / "image").values():
                rows.append(_row("segmentation", part, image.stem, image.relative_to(root).as_posix(), None))
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return the mask files of a segmentation photograph; an empty dict for other photographs."""
        subset, _, rest = image_id.partition("_")
        part, _, name = rest.partition("_")
        if subset != "segmentation" or part not in PARTS:
            return {}
        found: dict[str, Path] = {}
        for code in LESIONS:
            for folder in MASK_FOLDERS:
                for ending in MASK_ENDINGS:
                    path = root / SEGMENTATION / part / folder / code / f"{name}{ending}"
                    if path.exists():
                        found.setdefault(code, path)
        return found

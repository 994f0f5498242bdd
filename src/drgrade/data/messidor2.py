"""Messidor-2: photographs of ADCIS, grades adjudicated by three specialists (Krause et al., 2018).

Layout: ``IMAGES/`` and the list of pairs ``messidor-2.csv`` (left;right, one line per examination) as
distributed by ADCIS; ``messidor_data.csv`` (image_id, adjudicated_dr_grade, adjudicated_dme,
adjudicated_gradable) from Kaggle's google-brain/messidor2-dr-grades. Extension and case of a photograph's
name may differ between the files, so names are compared without them.
"""

import csv
import logging
from pathlib import Path

import pandas as pd

from drgrade.data.labels import Label, key, match, photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count, require
from drgrade.errors import UserError
from drgrade.params import Download

log = logging.getLogger(__name__)

GRADES, PAIRS = "messidor_data.csv", "messidor-2.csv"
UNGRADABLE = ("0", "0.0")


def _read_pairs(file: Path) -> dict[str, tuple[str, str]]:
    """Read patient and eye by image; the patient id is the name of the first image. Empty without a file."""
    if not file.exists():
        return {}
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(text.splitlines(), delimiter=";" if ";" in text else ",", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a CSV text file ({error}); save it as UTF-8 CSV") from None
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        cells = [key(cell.strip()) for cell in line]
        if not any(cells) or (number == 1 and cells[:2] == ["left", "right"]):
            continue
        names = {name: eye for name, eye in zip(cells, ("left", "right"), strict=False) if name}
        if any(name in pairs for name in names) or len(names) < sum(map(bool, cells[:2])):
            raise UserError(f"{file}: line {number}: an image is in two pairs or twice in one; correct it")
        pairs.update({name: (next(iter(names)), eye) for name, eye in names.items()})
    return pairs


def _judge(file: Path, label: Label | None) -> tuple[int | None, str | None]:
    """Return grade and quality; the grade of an ungradable photograph is None whatever its column says."""
    if label is None:
        return None, None
    if label.other["adjudicated_gradable"] in UNGRADABLE:
        return None, "reject"
    if label.grade is None:
        raise UserError(f"{file}: image {label.image!r} is gradable but has no grade; fetch the file again")
    return label.grade, None


@DATASETS.register("messidor2")
class Messidor2:
    """Both eyes of 874 examinations, graded 0-4; four photographs are ungradable."""

    card = Card(
        name="messidor2",
        title="Messidor-2",
        version="adjudicated grades of 2018",
        licence="terms of ADCIS, agreed to on request",
        source="https://www.adcis.net/en/third-party/messidor2/",
        access="form",
        citation=(
            "Decencière et al., Image Anal Stereol 33(3), 2014; "
            "Abràmoff et al., JAMA Ophthalmol 131(3), 2013; grades: Krause et al., Ophthalmology 125(8), 2018"
        ),
        instructions=(
            "ask for the photographs at {source} and put IMAGES/ and messidor-2.csv into {root}, with "
            "messidor_data.csv from https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades"
        ),
        counts={"all": Count(1748, GRADES, (1017, 270, 347, 75, 35))},
        defects=(
            "Most of Messidor lies in it (1,058 of its 1,748 photographs): one does not test the other.",
            "Patients are known only with the list of pairs, `messidor-2.csv`.",
            "CLPI's released validation and test lists both lie inside its training list.",
            "FLAIR's weights were pretrained on Messidor, among other datasets.",
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the user has put the files into ``root``."""
        require(self.card, root, GRADES, "IMAGES")

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows; see :class:`Dataset`. Without the list of pairs, each photograph is a patient."""
        file, pairs = root / GRADES, _read_pairs(root / PAIRS)
        if not pairs:
            log.warning("%s: no pairs of eyes, so those of a patient cannot be kept together", root / PAIRS)
        images = photographs(root / "IMAGES")
        alone = len(images.keys() - pairs.keys()) if pairs else 0
        if alone:
            log.warning("%s: %d photographs are in no pair; each is a patient", root / PAIRS, alone)
        labels = read_labels(file, "image_id", "adjudicated_dr_grade", ("adjudicated_gradable",), blank=True)
        rows = []
        for name, path, label in match(labels, images, file):
            patient, eye = pairs.get(key(name), (key(name), None))
            place = f"IMAGES/{path.name}" if path else None
            rows.append((name, place, patient, eye, *_judge(file, label), "grading", None))
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return an empty dict: Messidor-2 has no lesion masks."""
        return {}

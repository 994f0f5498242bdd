"""APTOS 2019 (Kaggle Blindness Detection).

Layout: ``train.csv`` (id_code, diagnosis), ``train_images/000c1434d8d7.png``; the photographs of the test
part, ``test_images/``, have no grades. There are no patient ids.
"""

from pathlib import Path

import pandas as pd

from drgrade.data.kaggle import bring
from drgrade.data.labels import match, photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count
from drgrade.params import Download

LABELS = "train.csv"


def _row(name: str, path: str | None, grade: int | None, split: str) -> tuple[str | int | None, ...]:
    return name, path, name, None, grade, None, "grading", split


@DATASETS.register("aptos")
class APTOS:
    """Photographs without patient ids, graded 0-4; those of the test part have no grades."""

    card = Card(
        name="aptos",
        title="APTOS 2019 (Kaggle Blindness Detection)",
        version="2019",
        licence="Kaggle competition rules",
        source="https://www.kaggle.com/c/aptos2019-blindness-detection",
        access="form",
        citation="Asia Pacific Tele-Ophthalmology Society, APTOS 2019 Blindness Detection, Kaggle, 2019",
        instructions=(
            "accept the rules at {source} and set up Kaggle credentials (~/.kaggle/kaggle.json), or put "
            "train.csv and the folder train_images/ into {root} (and, without grades, test_images/)"
        ),
        kaggle="aptos2019-blindness-detection",
        counts={"train": Count(3662, LABELS, (1805, 370, 999, 193, 295)), "test": Count(1928)},
        defects=(
            "Patients are not named, so that two eyes of one person may be in different parts.",
            "The official test part has no grades.",
            "FLAIR's weights were pretrained on it, among other datasets.",
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Fetch both parts from Kaggle, unless the graded part is already there."""
        names = (LABELS, "train_images")
        there = all((root / name).exists() for name in names)
        bring(self.card, root, names if there else (*names, "test_images"))

    def read(self, root: Path) -> pd.DataFrame:
        """Rows of the graded part and of ungraded photographs; see :class:`Dataset`."""
        labels = read_labels(root / LABELS, "id_code", "diagnosis")
        rows = [
            _row(name, f"train_images/{path.name}" if path else None, label.grade if label else None, "train")
            for name, path, label in match(labels, photographs(root / "train_images"), root / LABELS)
        ]
        tests = photographs(root / "test_images")
        rows += [_row(path.stem, f"test_images/{path.name}", None, "test") for path in tests.values()]
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return an empty dict: APTOS has no lesion masks."""
        return {}

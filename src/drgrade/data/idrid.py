"""IDRiD, the Indian Diabetic Retinopathy Image Dataset, in its official layout.

Part A has lesion masks, part B grades. File names repeat between the parts and between their training and
testing sets, so an image id contains all three: ``A_train_IDRiD_01``, ``B_test_IDRiD_001``. There are no
patient ids.
"""

from pathlib import Path

import pandas as pd

from drgrade.data.labels import match, photographs, read_labels
from drgrade.data.registry import DATASETS, READ_COLUMNS, Card, Count, require
from drgrade.params import Download

PART_A, PART_B = "A. Segmentation", "B. Disease Grading"
IMAGES, MASKS, LABELS = "1. Original Images", "2. All Segmentation Groundtruths", "2. Groundtruths"
SETS = {"train": "a. Training Set", "test": "b. Testing Set"}
LABEL_FILES = {
    "train": "a. IDRiD_Disease Grading_Training Labels.csv",
    "test": "b. IDRiD_Disease Grading_Testing Labels.csv",
}
LABEL_COLUMNS = ("Image name", "Retinopathy grade", "Risk of macular edema")
MASK_FOLDERS = {
    "MA": "1. Microaneurysms",
    "HE": "2. Haemorrhages",
    "EX": "3. Hard Exudates",
    "SE": "4. Soft Exudates",
}


def _row(
    part: str, split: str, name: str, path: str | None, grade: int | None
) -> tuple[str | int | None, ...]:
    image_id = f"{part}_{split}_{name}"
    return image_id, path, image_id, None, grade, None, "grading" if part == "B" else "segmentation", split


@DATASETS.register("idrid")
class IDRiD:
    """Photographs of 4288 x 2848 pixels: 81 with lesion masks (part A), 516 graded (part B)."""

    card = Card(
        name="idrid",
        title="IDRiD",
        version="2018",
        licence="CC-BY-4.0",
        source="https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
        access="form",
        citation="Porwal et al., Data 3(3):25, 2018",
        instructions=(
            "log in at {source}, fetch 'A. Segmentation.zip' and 'B. Disease Grading.zip'"
            " and unpack both into {root}, "
            "or name the folder that holds 'A. Segmentation' and 'B. Disease Grading' in DRGRADE_IDRID_ROOT"
        ),
        counts={
            "train": Count(413, f"{PART_B}/{LABELS}/{LABEL_FILES['train']}", (134, 20, 136, 74, 49)),
            "test": Count(103, f"{PART_B}/{LABELS}/{LABEL_FILES['test']}"),
            "segmentation train": Count(54),
            "segmentation test": Count(27),
        },
        defects=(
            "Patients are not named, so that two eyes of one person may be in different parts. Photographs "
            "with neighbouring numbers are often of one person; with `numbers_per_patient: 8`, blocks of 8 "
            "numbers count as patients.",
            "The official parts share a photograph: training 118 is test 064; the scheme `official` leaves "
            "the former out. Five pairs of training photographs are copies of each other, of which two pairs "
            "have two different grades.",
            "Most photographs with masks (part A) are among the graded ones (part B). File names repeat "
            "between both, and between training and test.",
            "All photographs are of one eye clinic in India and one camera (Kowa VX-10 alpha, 50 degrees).",
            "FLAIR's weights were pretrained on it, among other datasets.",
        ),
    )

    def download(self, root: Path, params: Download) -> None:
        """Check that the user has put the files into ``root``; a part may be incomplete."""
        require(self.card, root, PART_A, PART_B)

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows of part A (no grades) and part B; see :class:`Dataset`."""
        rows = []
        for split, folder in SETS.items():
            for image in photographs(root / PART_A / IMAGES / folder).values():
                rows.append(_row("A", split, image.stem, image.relative_to(root).as_posix(), None))
        for split, folder in SETS.items():
            images = photographs(root / PART_B / IMAGES / folder)
            file = root / PART_B / LABELS / LABEL_FILES[split]
            labels = read_labels(file, *LABEL_COLUMNS[:2]) if images or file.exists() else []
            for name, path, label in match(labels, images, file):
                place = path.relative_to(root).as_posix() if path else None
                rows.append(_row("B", split, name, place, label.grade if label else None))
        return pd.DataFrame(rows, columns=list(READ_COLUMNS))

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return the mask files of a photograph of part A; an empty dict for other photographs."""
        part, _, rest = image_id.partition("_")
        split, _, name = rest.partition("_")
        if part != "A" or split not in SETS:
            return {}
        folder = root / PART_A / MASKS / SETS[split]
        paths = {code: folder / kind / f"{name}_{code}.tif" for code, kind in MASK_FOLDERS.items()}
        return {code: path for code, path in paths.items() if path.exists()}

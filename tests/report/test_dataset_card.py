import re

import pandas as pd
import pytest

from drgrade import schema
from drgrade.data.registry import DATASETS
from drgrade.images.dataset import CroppedDataset
from drgrade.params import check
from drgrade.report.dataset_card import LISTED, dataset_card

HEADINGS = [
    "Motivation", "Composition", "Collection process", "Preprocessing, cleaning, labelling", "Uses",
    "Distribution", "Maintenance",
]  # fmt: skip
"""Those of Gebru et al., 2021."""


def dataset(folder, rows, name="idrid", failed=()):
    """A dataset with these rows of the index; crops of the images in ``failed`` failed."""
    defaults = {"subset": "grading", "status": "ok", "reason": "", "width": 4288, "height": 2848}
    table = pd.DataFrame([defaults | {"patient_id": row["image_id"], "quality": 0.95} | row for row in rows])
    data = CroppedDataset(name, folder)
    schema.write_table(table.reindex(columns=list(schema.INDEX)), data.index_file, schema.INDEX)
    bad = table["image_id"].isin(failed)
    crops = table[["image_id"]].assign(
        status=bad.map({True: "failed", False: "ok"}), reason=bad.map({True: "truncated", False: ""})
    )
    schema.write_table(crops.reindex(columns=list(schema.CROPS)), data.crops_file, schema.CROPS)
    return data


def params(**values):
    roles = {"lesions": "idrid", "pretrain": "idrid", "grade": "idrid"}
    asked = {"datasets": {"idrid": {}}, "roles": roles, "explanations": {}} | values
    return check(asked, "test").model_dump()


@pytest.fixture
def rows():
    """Four graded photographs of three patients, one with masks, one without a grade, two left out."""
    return [
        {"image_id": "a_left", "patient_id": "a", "eye": "left", "grade": 0, "split": "train"},
        {"image_id": "a_right", "patient_id": "a", "eye": "right", "grade": 2, "split": "train"},
        {"image_id": "b", "grade": 2, "split": "test", "quality": 0.4},
        {"image_id": "c", "grade": 4, "split": "test", "width": 1000, "height": 1200},
        {"image_id": "m", "subset": "segmentation", "split": "train"},
        {"image_id": "u", "status": "unlabelled", "reason": "no grade for this photograph"},
        {"image_id": "x", "status": "missing", "reason": "no photograph for this label"},
        {"image_id": "y", "status": "filtered", "reason": "a copy of b in the official test part"},
    ]  # fmt: skip


def test_card_says_what_a_reader_must_know(tmp_path, rows):
    text = dataset_card(dataset(tmp_path, rows, failed=["c"]), params())
    assert text.startswith("# Dataset card: IDRiD (`idrid`)\n")
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    for part in (
        "trains and tests the grader; pretraining, without grades; lesion masks.",
        "Porwal et al., Data 3(3):25, 2018",
        "| test | 2 | 2 | 0 | 0 | 1 | 0 | 1 |",
        "| train | 2 | 1 | 1 | 0 | 1 | 0 | 0 |",
        "- Photographs with lesion masks: train 1\n",
        "- Photographs without a grade, for pretraining only: 1\n",
        "- Eye known: 2 of 4\n",
        "- Larger side: 1200 to 4288 px, median 4288; 2 sizes, most common 4288 x 2848 (5 photographs)\n",
        "- Computed quality (0 to 1): median 0.950; 17% below 0.5, 83% at 0.9 or above\n",
        "- The complete dataset, by part: train 413, test 103, ",
        "| failed | truncated | 1 |",
        "| filtered | a copy of b in the official test part | 1 |",
        "| missing | no photograph for this label | 1 |",
        "Real photographs",
        "training 118 is test 064",
        "- Licence: CC-BY-4.0\n- Source: https://ieee-dataport.org",
    ):
        assert part in text, part
    assert "No two photographs" not in text


def test_folds_take_the_place_of_parts(tmp_path, rows):
    folds = [row | {"fold": place % 2, "split": None} for place, row in enumerate(rows[:4])]
    text = dataset_card(dataset(tmp_path, folds), params(index={"scheme": "kfold"}))
    assert "| fold 0 | 2 | 2 | 1 | 0 | 1 | 0 | 0 |" in text
    assert "| fold 1 | 2 | 2 | 0 | 0 | 1 | 0 | 1 |" in text
    assert "Split: cross-validation by patient" in text


def test_unknown_patients_are_a_defect(tmp_path, rows):
    assert "- No two photographs have the same patient id" in dataset_card(
        dataset(tmp_path, rows[1:]), params()
    )


def test_blocks_of_numbers_are_called_so(tmp_path, rows):
    values = params(datasets={"idrid": {"numbers_per_patient": 8}})
    assert (
        "- The dataset names no patients: of its graded photographs, each block of 8 numbers"
        in dataset_card(dataset(tmp_path, rows), values)
    )


def test_only_the_most_frequent_reasons_are_listed(tmp_path):
    rows = [{"image_id": "ok", "grade": 0}]
    rows += [
        {"image_id": f"{reason}_{n}", "status": "filtered", "reason": f"reason {reason:02}"}
        for reason in range(LISTED + 2)
        for n in range(2 if reason == LISTED else 1)
    ]
    text = dataset_card(dataset(tmp_path, rows), params())
    listed = re.findall(r"^\| filtered \| (reason \d+) \|", text, re.M)
    assert listed == [f"reason {LISTED}", *(f"reason {reason:02}" for reason in range(LISTED - 1))]
    assert "And 2 rows for other reasons" in text


def test_a_limit_of_quality_is_told(tmp_path, rows):
    text = dataset_card(dataset(tmp_path, rows), params(index={"min_quality": 0.3}))
    assert "- Those with a computed quality below 0.3 are not used.\n" in text
    assert "not used" not in dataset_card(dataset(tmp_path, rows), params())


def test_nothing_left_out_is_said(tmp_path, rows):
    assert "No photograph and no label is left out." in dataset_card(dataset(tmp_path, rows[:4]), params())


def test_a_synthetic_external_dataset(tmp_path, rows):
    values = params(
        datasets={"idrid": {}, "demo_site": {"limit": 9}},
        roles={"lesions": "idrid", "pretrain": "idrid", "grade": "idrid", "external": ["demo_site"]},
    )
    text = dataset_card(dataset(tmp_path, rows, "demo_site"), values)
    for part in (
        "- In this run: external test.",
        "Synthetic: none shows a patient",
        "at most 9 graded photographs",
        "All of its graded photographs are tested on",
        "- Licence: Apache-2.0",
    ):
        assert part in text, part


def test_every_dataset_without_patient_ids_says_so():
    """Readers that give each photograph a patient of its own."""
    for name in ("idrid", "aptos", "ddr"):
        assert "Patients are not named" in " ".join(DATASETS.get(name)().card.defects)

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drgrade.data.ddr import DDR
from drgrade.data.registry import READ_COLUMNS, count_report
from drgrade.errors import UserError
from drgrade.lesions.masks import read_mask
from drgrade.params import Download


def touch(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    grades = {
        "train": "007-0004-000.jpg 0\n007-0007-000.jpg 5\n",
        "valid": "007-1.jpg 3\n",
        "test": "2017.jpg 4\n\n",
    }
    for part, text in grades.items():
        touch(tmp_path / f"DR_grading/{part}.txt", text.encode())
    for path in ("train/007-0004-000.jpg", "train/extra.jpg", "valid/007-1.jpg", "test/2017.jpg"):
        touch(tmp_path / "DR_grading" / path)
    for part in ("train", "valid", "test"):
        touch(tmp_path / f"lesion_segmentation/{part}/image/007-{part}.jpg")
    return tmp_path


def test_official_parts_are_kept_and_ungradable_ones_rejected(root: Path) -> None:
    table = DDR().read(root)
    assert list(table.columns) == list(READ_COLUMNS)
    assert table["image_id"].is_unique
    plain = table.astype(object).where(table.notna(), None).set_index("image_id")
    assert plain[["path", "grade", "quality_label", "official_split"]].T.to_dict("list") == {
        "grading_train_007-0004-000": ["DR_grading/train/007-0004-000.jpg", 0, None, "train"],
        "grading_train_007-0007-000": [None, None, "reject", "train"],
        "grading_train_extra": ["DR_grading/train/extra.jpg", None, None, "train"],
        "grading_valid_007-1": ["DR_grading/valid/007-1.jpg", 3, None, "val"],
        "grading_test_2017": ["DR_grading/test/2017.jpg", 4, None, "test"],
        "segmentation_train_007-train": [
            "lesion_segmentation/train/image/007-train.jpg",
            None,
            None,
            "train",
        ],
        "segmentation_valid_007-valid": ["lesion_segmentation/valid/image/007-valid.jpg", None, None, "val"],
        "segmentation_test_007-test": ["lesion_segmentation/test/image/007-test.jpg", None, None, "test"],
    }
    assert plain["subset"].value_counts().to_dict() == {"grading": 5, "segmentation": 3}


def test_a_graded_photograph_and_its_copy_with_masks_are_one_patient(root: Path) -> None:
    touch(root / "lesion_segmentation/test/image/007-0004-000.jpg")
    table = DDR().read(root).set_index("image_id")
    same = ["grading_train_007-0004-000", "segmentation_test_007-0004-000"]
    assert table.loc[same, "patient_id"].nunique() == 1


@pytest.mark.parametrize("folder", ["label", "segmentation label", "annotations"])
def test_masks_are_found_by_lesion(root: Path, folder: str) -> None:
    lesion = np.zeros((4, 6), np.uint8)
    lesion[1, 2] = 255
    for code in ("MA", "EX"):
        path = root / f"lesion_segmentation/valid/{folder}/{code}/007-valid.tif"
        path.parent.mkdir(parents=True)
        Image.fromarray(lesion).save(path)
    masks = DDR().masks(root, "segmentation_valid_007-valid")
    assert list(masks) == ["MA", "EX"]
    assert np.array_equal(read_mask(masks["EX"]), lesion > 0)
    assert DDR().masks(root, "segmentation_train_007-train") == {}
    assert DDR().masks(root, "grading_valid_007-valid") == {}


def test_the_official_lists(root: Path) -> None:
    """Sizes and classes as published: 1,151 of 13,673 are ungradable."""
    grades = np.repeat(np.arange(6), (6266, 630, 4477, 236, 913, 1151))
    for part, some in zip(("train", "valid", "test"), np.split(grades, [6835, 6835 + 2733]), strict=True):
        lines = "".join(f"{part}-{n}.jpg {grade}\n" for n, grade in enumerate(some))
        (root / f"DR_grading/{part}.txt").write_text(lines)
        shutil.rmtree(root / f"DR_grading/{part}", ignore_errors=True)
    table = DDR().read(root)
    assert (table["quality_label"] == "reject").sum() == 1151
    labelled = [line for line in count_report(DDR.card, table, root) if "labels" in line]
    assert [line.split(", ")[-1] for line in labelled] == [
        f"{n} labels; complete it has {n}" for n in (6835, 2733, 4105, 13673)
    ]
    wrong = (root / "DR_grading/test.txt").read_text().replace(" 5\n", " 4\n", 1)
    (root / "DR_grading/test.txt").write_text(wrong)
    with pytest.raises(UserError, match=r"DR_grading: 13673 labels, .*/914, but .*6266/630/4477/236/913"):
        count_report(DDR.card, DDR().read(root), root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.jpg 6\n", "line 1: needs an image and a grade of 0 to 5"),
        ("a.jpg 1\n3\n", "line 2: needs an image"),
        ("a.jpg 1\na.jpg 2\n", "line 2: image 'a.jpg' has another label already"),
    ],
)
def test_broken_lists_are_named(root: Path, text: str, says: str) -> None:
    (root / "DR_grading/valid.txt").write_text(text)
    with pytest.raises(UserError, match=rf"valid\.txt: {says}"):
        DDR().read(root)


def test_photographs_without_their_list(root: Path) -> None:
    (root / "DR_grading/test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt: no such file"):
        DDR().read(root)


def test_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DR_grading: not found.*DDR-dataset"):
        DDR().download(tmp_path, Download())

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from drgrade.data.eyepacs import EyePACS
from drgrade.data.folder import Folder
from drgrade.data.idrid import IDRiD
from drgrade.data.registry import DATASETS, READ_COLUMNS, raw_root
from drgrade.errors import UserError
from drgrade.params import Download


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def by_id(table: pd.DataFrame) -> dict[str, dict[str, object]]:
    assert list(table.columns) == list(READ_COLUMNS)
    assert table["image_id"].is_unique
    plain = table.astype(object).where(table.notna(), None)
    return {row["image_id"]: row for row in plain.to_dict("records")}


def test_eyepacs_joins_labels_and_photographs(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/10_left.jpeg",
        "train/10_right.jpeg",
        "train/13_left.jpeg",
        "test/1_left.jpeg",
        "test/2_right.jpeg",
    )
    put(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n10_right,4\n15_left,2\n")
    put(tmp_path, "retinopathy_solution.csv", "image,level,Usage\n1_left,3,Public\n2_right,1,Private\n")
    rows = by_id(EyePACS().read(tmp_path))
    assert list(rows["10_right"].values()) == [
        "10_right",
        "train/10_right.jpeg",
        "10",
        "right",
        4,
        None,
        "grading",
        "train",
    ]
    assert rows["15_left"]["path"] is None
    assert rows["15_left"]["grade"] == 2
    assert rows["13_left"]["grade"] is None
    assert (rows["1_left"]["official_split"], rows["2_right"]["official_split"]) == ("val", "test")
    assert len(rows) == 6


def test_eyepacs_takes_the_quality_labels_of_eyeq(tmp_path: Path) -> None:
    touch(tmp_path, "train/10_left.jpeg", "train/10_right.jpeg", "train/13_left.jpeg", "test/1_left.jpeg")
    put(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n10_right,4\n15_left,2\n")
    put(tmp_path, "retinopathy_solution.csv", "image,level,Usage\n1_left,3,Public\n")
    head = ",image,quality,DR_grade\n"
    put(
        tmp_path,
        "Label_EyeQ_train.csv",
        head + "0,10_left.jpeg,0,0\n1,10_right.jpeg,2,4\n2,99_left.jpeg,1,0\n",
    )
    put(tmp_path, "Label_EyeQ_test.csv", head + "0,1_left.jpeg,1,3\n")
    rows = by_id(EyePACS().read(tmp_path))
    assert {name: row["quality_label"] for name, row in rows.items()} == {
        "10_left": "good", "10_right": "reject", "15_left": None, "13_left": None, "1_left": "usable",
    }  # fmt: skip
    assert rows["10_right"]["grade"] == 4  # what is rejected keeps its grade
    put(tmp_path, "Label_EyeQ_test.csv", head + "0,1_left.jpeg,3,3\n")
    with pytest.raises(UserError, match=r"Label_EyeQ_test\.csv: .*1_left.*quality 3 is not 0, 1 or 2"):
        EyePACS().read(tmp_path)


def test_eyepacs_test_photographs_without_their_grades(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "train/10_left.jpeg", "test/1_left.jpeg")
    put(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n")
    with caplog.at_level(logging.WARNING):
        row = by_id(EyePACS().read(tmp_path))["1_left"]
    assert (row["grade"], row["official_split"], row["path"]) == (None, "test", "test/1_left.jpeg")
    assert "retinopathy_solution.csv: not found" in caplog.text


def test_eyepacs_without_its_test_part(tmp_path: Path) -> None:
    touch(tmp_path, "train/10_left.jpeg")
    put(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n")
    assert set(EyePACS().read(tmp_path)["official_split"]) == {"train"}


def make_idrid(root: Path) -> None:
    photographs_a = "A. Segmentation/1. Original Images"
    photographs_b = "B. Disease Grading/1. Original Images"
    masks = "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set"
    labels = "B. Disease Grading/2. Groundtruths"
    touch(
        root,
        f"{photographs_a}/a. Training Set/IDRiD_01.jpg",
        f"{photographs_a}/b. Testing Set/IDRiD_55.jpg",
        f"{photographs_b}/a. Training Set/IDRiD_001.jpg",
        f"{photographs_b}/b. Testing Set/IDRiD_001.jpg",
        f"{masks}/1. Microaneurysms/IDRiD_01_MA.tif",
        f"{masks}/5. Optic Disc/IDRiD_01_OD.tif",
    )
    head = "Image name,Retinopathy grade,Risk of macular edema,,,,,,,,,\r\n"
    train = "IDRiD_001,3,2,,,,,,,,,\r\n,,,,,,,,,,,\r\n"
    put(root, f"{labels}/a. IDRiD_Disease Grading_Training Labels.csv", head + train)
    put(root, f"{labels}/b. IDRiD_Disease Grading_Testing Labels.csv", head + "IDRiD_001,1,0\r\n")


def test_idrid_tells_parts_and_sets_apart(tmp_path: Path) -> None:
    make_idrid(tmp_path)
    rows = by_id(IDRiD().read(tmp_path))
    assert set(rows) == {"A_train_IDRiD_01", "A_test_IDRiD_55", "B_train_IDRiD_001", "B_test_IDRiD_001"}
    assert (rows["B_train_IDRiD_001"]["grade"], rows["B_test_IDRiD_001"]["grade"]) == (3, 1)
    assert rows["A_test_IDRiD_55"]["official_split"] == "test"
    assert rows["A_train_IDRiD_01"]["subset"] == "segmentation"
    assert all(row["patient_id"] == name for name, row in rows.items())
    masks = IDRiD().masks(tmp_path, "A_train_IDRiD_01")
    assert list(masks) == ["MA"]
    assert masks["MA"].is_file()
    assert IDRiD().masks(tmp_path, "B_train_IDRiD_001") == {}
    assert IDRiD().masks(tmp_path, "A_test_IDRiD_55") == {}


def test_real_idrid_photographs_are_read() -> None:
    root = os.environ.get("DRGRADE_IDRID_ROOT")
    if not root or not Path(root, "B. Disease Grading").is_dir():
        pytest.skip("DRGRADE_IDRID_ROOT names no IDRiD folder")
    from PIL import Image

    table = IDRiD().read(Path(root))
    assert table["image_id"].is_unique
    masked = table[table["subset"] == "segmentation"]
    found = [IDRiD().masks(Path(root), name) for name in masked["image_id"]]
    assert len(found) >= 18
    assert all({"MA", "HE", "EX"} <= set(masks) for masks in found)
    assert set(np.unique(Image.open(found[0]["MA"]))) == {0, 1}
    graded = table[table["subset"] == "grading"]
    assert graded["path"].notna().sum() >= 177
    assert set(graded["grade"].dropna()) == {0, 1, 2, 3, 4}


def test_eyepacs_labels_may_name_endings(tmp_path: Path) -> None:
    touch(tmp_path, "train/10_left.jpeg", "train/10_right.JPEG")
    put(tmp_path, "trainLabels.csv", "image,level\n10_left.jpeg,0\n10_right.png,3\n")
    put(tmp_path, "Label_EyeQ_train.csv", "image,quality\n10_LEFT.jpeg,1\n")
    rows = by_id(EyePACS().read(tmp_path))
    assert {name: (row["grade"], row["patient_id"]) for name, row in rows.items()} == {
        "10_left": (0, "10"), "10_right": (3, "10"),
    }  # fmt: skip
    assert rows["10_left"]["quality_label"] == "usable"


def test_own_folder_takes_quality_labels(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png")
    put(tmp_path, "labels.csv", "image,grade,quality\na,2,Usable\nb,,reject\n")
    rows = by_id(Folder().read(tmp_path))
    assert (rows["a"]["quality_label"], rows["b"]["quality_label"]) == ("usable", "reject")
    put(tmp_path, "labels.csv", "image,grade,quality\na,2,poor\n")
    with pytest.raises(UserError, match=r"line 2: quality 'poor' is not one of good, reject, usable"):
        Folder().read(tmp_path)


def tagged(path: Path, **tags: str) -> None:
    """A DICOM file of these tags alone."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"  # ophthalmic photography, 8 bit
    dataset.SOPInstanceUID = "1.2.3"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, on a file that is none
def test_own_dicom_photographs_name_patient_and_eye_where_the_labels_do_not(tmp_path: Path) -> None:
    tagged(tmp_path / "images/a.dcm", PatientID="P1", ImageLaterality="L")
    tagged(tmp_path / "images/b.dcm", PatientID="P1", Laterality="R")
    tagged(tmp_path / "images/c_left.DCM", PatientID="")
    tagged(tmp_path / "images/d.dcm", PatientID="P2", ImageLaterality="B")
    tagged(tmp_path / "images/e.dcm", PatientID="P3", ImageLaterality="L")
    (tmp_path / "images/f_right.dcm").write_bytes(b"no DICOM at all")
    put(tmp_path, "labels.csv", "image,grade,patient,eye\na.dcm,0,,\nb,1,X,\ne,2,,OD\n")
    with pytest.raises(UserError, match=r"2 of 6 photographs have no patient .*: 'c_left', 'f_right';"):
        Folder().read(tmp_path)
    put(
        tmp_path,
        "labels.csv",
        "image,grade,patient,eye\na.dcm,0,,\nb,1,X,\ne,2,,OD\nc_left,,C,\nf_right,,F,\n",
    )
    rows = by_id(Folder().read(tmp_path))
    assert {name: (row["patient_id"], row["eye"]) for name, row in rows.items()} == {
        "a": ("X", "left"), "b": ("X", "right"), "c_left": ("C", "left"), "d": ("P2", None),
        "e": ("P3", "right"), "f_right": ("F", "right"),
    }  # fmt: skip
    assert rows["a"]["path"] == "images/a.dcm"


def test_own_folder_takes_patients_from_names_or_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "images/a_left.png", "images/b.JPG", "images/c.tif", "images/notes.txt", "images/d.png")
    touch(tmp_path, "images/.hidden.png", "images/P8/a_left.png")
    put(tmp_path, "labels.csv", "Image, Grade ,eye\na_left.png,2,\nb,0,OD\nd,,\ngone,1,\n")
    rows = by_id(Folder().read(tmp_path))
    assert (rows["a_left"]["patient_id"], rows["a_left"]["eye"], rows["a_left"]["grade"]) == ("a", "left", 2)
    assert (rows["b"]["patient_id"], rows["b"]["eye"], rows["b"]["path"]) == ("b", "right", "images/b.JPG")
    assert "the names of 3 of 4 photographs tell no patient, such as b" in caplog.text
    assert rows["c"]["grade"] is None
    assert rows["d"]["grade"] is None
    assert rows["gone"]["path"] is None
    assert set(rows) == {"a_left", "b", "c", "d", "gone"}
    assert "2 files are not read, such as P8/a_left.png; photographs lie directly there" in caplog.text


def test_same_name_with_two_endings_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/10_left.jpeg", "train/10_left.png")
    put(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n")
    with pytest.raises(UserError, match="same name as"):
        EyePACS().read(tmp_path)


@pytest.mark.parametrize(
    ("name", "needs"), [("eyepacs", "trainLabels.csv"), ("idrid", "A. Segmentation"), ("folder", "images")]
)
def test_data_that_the_user_brings_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, needs: str
) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace())  # never the network
    part = DATASETS.get(name)()
    with pytest.raises(UserError) as error:
        part.download(tmp_path, Download())
    assert needs in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "{" not in str(error.value)


def test_every_card_is_named_after_its_module() -> None:
    for name in ("demo", "eyepacs", "idrid", "aptos", "messidor2", "ddr", "folder"):
        assert DATASETS.get(name).card.name == name


def test_root_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRGRADE_IDRID_ROOT", raising=False)
    assert raw_root("idrid") == Path("data/raw/idrid")
    monkeypatch.setenv("DRGRADE_IDRID_ROOT", str(tmp_path))
    assert raw_root("idrid") == tmp_path

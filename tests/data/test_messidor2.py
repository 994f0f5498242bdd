import logging
from pathlib import Path

import pytest

from drgrade.data.messidor2 import Messidor2
from drgrade.data.registry import READ_COLUMNS
from drgrade.errors import UserError
from drgrade.params import Download

HEAD = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
LABELS = (
    HEAD
    + "20051020_43808_0100_PP.png,2,1,1\n20051020_43832_0100_PP.png,0,0,1\nIM000001.jpg,,,0\nIM2.JPG,4,0,1\n"
)
PAIRS = "left;right\n20051020_43808_0100_PP.png;20051020_43832_0100_PP.png\nim000001.JPG;IM2.jpg\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "IMAGES").mkdir()
    for name in ("20051020_43808_0100_PP.png", "20051020_43832_0100_PP.png", "IM000001.JPG", "IM3.JPG"):
        (tmp_path / "IMAGES" / name).write_bytes(b"x")
    (tmp_path / "messidor_data.csv").write_text(LABELS)
    (tmp_path / "messidor-2.csv").write_text(PAIRS)
    return tmp_path


def read(root: Path) -> dict[str, list]:
    table = Messidor2().read(root)
    assert list(table.columns) == list(READ_COLUMNS)
    assert table["image_id"].is_unique
    assert table["official_split"].isna().all()
    plain = table.astype(object).where(table.notna(), None).set_index("image_id")
    return plain[["path", "patient_id", "eye", "grade", "quality_label"]].T.to_dict("list")


def test_names_meet_whatever_their_case_and_ending(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = read(root)
    first = "20051020_43808_0100_pp"
    assert rows == {
        "20051020_43808_0100_PP": ["IMAGES/20051020_43808_0100_PP.png", first, "left", 2, None],
        "20051020_43832_0100_PP": ["IMAGES/20051020_43832_0100_PP.png", first, "right", 0, None],
        "IM000001": ["IMAGES/IM000001.JPG", "im000001", "left", None, "reject"],
        "IM2": [None, "im000001", "right", 4, None],
        "IM3": ["IMAGES/IM3.JPG", "im3", None, None, None],
    }
    assert "1 photographs are in no pair" in caplog.text


def test_without_pairs_every_photograph_is_a_patient_and_this_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "messidor-2.csv").unlink()
    with caplog.at_level(logging.WARNING):
        rows = read(root)
    assert [row[1] for row in rows.values()] == [name.lower() for name in rows]
    assert "cannot be kept together" in caplog.text


@pytest.mark.parametrize(
    "text", [PAIRS.replace(";", ","), PAIRS.removeprefix("left;right\n"), PAIRS + "\n;\n"]
)
def test_pairs_in_other_spellings(root: Path, text: str) -> None:
    expected = read(root)
    (root / "messidor-2.csv").write_text(text)
    assert read(root) == expected


def test_a_single_eye_is_a_patient(root: Path) -> None:
    (root / "messidor-2.csv").write_text(PAIRS + ";IM3.JPG\n")
    assert read(root)["IM3"][1:3] == ["im3", "right"]


def test_grades_written_as_decimals(root: Path) -> None:
    (root / "messidor_data.csv").write_text(HEAD + "IM000001.JPG,3.0,1.0,1.0\nIM3.JPG,,,0.0\n")
    rows = read(root)
    assert rows["IM000001"][3:] == [3, None]
    assert rows["IM3"][3:] == [None, "reject"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("messidor-2.csv", PAIRS + "IM3.JPG;IM2.JPG\n", r"line 4: an image is in two pairs"),
        ("messidor-2.csv", "left;right\nIM3.JPG;IM3.JPG\n", r"line 2: an image is in two pairs or twice"),
        ("messidor_data.csv", HEAD + "IM000001.jpg,,,1\n", r"'IM000001\.jpg' is gradable but has no grade"),
        ("messidor_data.csv", HEAD + "a.png,1,0,1\nA.JPG,2,0,1\n", r"'A\.JPG' has a label already"),
        ("messidor_data.csv", HEAD + "a.png,1.5,0,1\n", r"grade '1\.5' is not one of 0 to 4"),
        ("messidor_data.csv", "image_id,grade\n", "no column 'adjudicated_dr_grade'"),
    ],
)
def test_broken_files_are_named(root: Path, name: str, text: str, says: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: .*{says}"):
        Messidor2().read(root)


def test_two_photographs_of_one_name(root: Path) -> None:
    (root / "IMAGES" / "im3.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"same name as IM3\.JPG"):
        Messidor2().read(root)


def test_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"messidor_data\.csv: not found.*adcis.*messidor-2\.csv"):
        Messidor2().download(tmp_path, Download())

import logging
import shutil
from pathlib import Path

import pytest

from drgrade.data.aptos import APTOS
from drgrade.data.download import download
from drgrade.data.registry import READ_COLUMNS, count_report
from drgrade.errors import UserError
from drgrade.params import Download


def make(root: Path, labels: str = "id_code,diagnosis\n000c,2\n001f,0\n0024,4\n") -> None:
    for path in (
        "train_images/000c.png",
        "train_images/001f.png",
        "train_images/ffff.png",
        "test_images/0005.png",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    (root / "train.csv").write_text(labels)


def test_both_parts_are_read(tmp_path: Path) -> None:
    make(tmp_path)
    table = APTOS().read(tmp_path)
    assert list(table.columns) == list(READ_COLUMNS)
    plain = table.astype(object).where(table.notna(), None).set_index("image_id")
    assert plain[["path", "grade", "official_split"]].T.to_dict("list") == {
        "000c": ["train_images/000c.png", 2, "train"],
        "001f": ["train_images/001f.png", 0, "train"],
        "0024": [None, 4, "train"],
        "ffff": ["train_images/ffff.png", None, "train"],
        "0005": ["test_images/0005.png", None, "test"],
    }
    assert set(plain["patient_id"]) == set(plain.index)  # no patient is named
    assert set(plain["quality_label"]) == set(plain["eye"]) == {None}
    assert set(plain["subset"]) == {"grading"}
    assert APTOS().masks(tmp_path, "000c") == {}


def test_label_files_may_name_endings_and_use_semicolons(tmp_path: Path) -> None:
    make(tmp_path, "id_code;diagnosis\n000C.png;2\n001f.jpeg;0\n")
    rows = APTOS().read(tmp_path).set_index("image_id")
    assert rows.loc[["000c", "001f"], "grade"].tolist() == [2, 0]
    assert rows.loc[["000c", "001f"], "path"].tolist() == ["train_images/000c.png", "train_images/001f.png"]


def test_a_partial_copy_is_listed_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "raw")
    monkeypatch.setenv("DRGRADE_APTOS_ROOT", str(tmp_path / "raw"))
    with caplog.at_level(logging.WARNING):
        download("aptos", Download(), tmp_path / "manifest.tsv")
    assert "train: 3 photographs, 3 labels, of which 2 match; complete it has 3662" in caplog.text
    assert "test: 1 photographs; complete it has 1928" in caplog.text
    assert "train.csv" in (tmp_path / "manifest.tsv").read_text()


def test_labels_of_another_file_stop_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    severe = "".join(f"{n:04x},3\n" for n in range(194))  # APTOS has 193 of grade 3
    make(tmp_path / "raw", f"id_code,diagnosis\n{severe}")
    monkeypatch.setenv("DRGRADE_APTOS_ROOT", str(tmp_path / "raw"))
    with pytest.raises(
        UserError, match=r"train\.csv: 194 labels, .* 0/0/0/194/0, but .* 3662.* 1805/370/999/193/295"
    ):
        download("aptos", Download(), tmp_path / "manifest.tsv")
    assert not (tmp_path / "manifest.tsv").exists()


def test_the_official_label_file(tmp_path: Path) -> None:
    grades = [g for g, n in enumerate((1805, 370, 999, 193, 295)) for _ in range(n)]
    make(tmp_path, "id_code,diagnosis\n" + "".join(f"x{n},{g}\n" for n, g in enumerate(grades)))
    with pytest.raises(UserError, match=r"train\.csv: 0 of 3662 labels match one of 3 photographs"):
        APTOS().read(tmp_path)
    shutil.rmtree(tmp_path / "train_images")
    report = count_report(APTOS.card, APTOS().read(tmp_path), tmp_path)
    assert report[0].endswith("train: 0 photographs, 3662 labels; complete it has 3662")

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade.data.download import download, write_manifest
from drgrade.data.index import assemble, build_index
from drgrade.data.listing import HEADER, read_manifest
from drgrade.errors import UserError
from drgrade.images import survey as survey_module
from drgrade.images.survey import Survey, survey, survey_all
from drgrade.params import Download, Index
from drgrade.schema import INDEX, read_table

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (48, 64, 3), np.uint8)


def encoded(mode: str, kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def unique_jpeg(n: int, quality: int = 90) -> bytes:
    """A photograph that looks like no other one."""
    coarse = np.random.default_rng(n).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder dataset of 12 patients with two eyes each, grades 0 to 4."""
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    lines = ["image,grade"]
    for n in range(24):
        name = f"{n // 2}_{('left', 'right')[n % 2]}"
        (folder / "images" / f"{name}.jpg").write_bytes(unique_jpeg(n))
        lines.append(f"{name},{n // 2 % 5}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("DRGRADE_FOLDER_ROOT", str(folder))
    return folder


def index(tmp_path: Path, params: Index | None = None, limit: int | None = None, **more: Any):
    manifest, out = tmp_path / "manifest.tsv", tmp_path / "index.parquet"
    download("folder", Download(), manifest)
    build_index(
        "folder", params or Index(), limit, manifest, out, split=tmp_path / "split.csv", workers=2, **more
    )
    return read_table(out, INDEX).set_index("image_id")


def test_index_lists_every_photograph(root: Path, tmp_path: Path) -> None:
    table = index(tmp_path)
    assert len(table) == 24
    assert set(table["status"]) == {"ok"}
    assert set(table["width"]) == {64}
    assert set(table["height"]) == {48}
    assert set(table["split"]) == {"train", "val", "test"}
    assert table.loc["3_left", "eye"] == "left"
    assert table.loc["3_left", "patient_id"] == "3"


def test_index_and_manifest_do_not_depend_on_the_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(tmp_path)
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    monkeypatch.setenv("DRGRADE_FOLDER_ROOT", str(moved))
    (tmp_path / "second").mkdir()
    index(tmp_path / "second")
    for name in ("manifest.tsv", "index.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_bad_files_are_rows_with_a_reason(root: Path, tmp_path: Path) -> None:
    images = root / "images"
    (images / "0_left.jpg").write_bytes(unique_jpeg(99)[:-400])
    (images / "0_right.jpg").write_bytes(b"")
    (images / "1_left.jpg").write_text("this is no photograph")
    (images / "1_right.jpg").write_bytes(unique_jpeg(98)[:12])
    (images / "2_left.jpg").write_bytes(encoded("L", "JPEG"))
    (images / "2_right.jpg").write_bytes(encoded("RGBA", "PNG"))
    (images / "3_left.jpg").write_bytes(encoded("CMYK", "JPEG"))
    deep = cv2.imencode(".png", RNG.integers(0, 65535, (48, 64, 3), np.uint16))[1]
    (images / "3_right.jpg").write_bytes(deep.tobytes())
    (images / "4_left.jpg").unlink()
    (images / "99_left.jpg").write_bytes(unique_jpeg(97))
    table = index(tmp_path)
    assert len(table) == 25
    good = ["2_left", "2_right", "3_left", "3_right"]
    assert set(table.loc[good, "status"]) == {"ok"}
    assert set(table.loc[[*good, "0_left"], "width"]) == {64}
    bad = table[table["status"] != "ok"]
    assert bad["status"].to_dict() == {
        "0_left": "unreadable", "0_right": "unreadable", "1_left": "unreadable", "1_right": "unreadable",
        "4_left": "missing", "99_left": "unlabelled",
    }  # fmt: skip
    assert bad["reason"].to_dict() == {
        "0_left": "truncated JPEG", "0_right": "empty file", "99_left": "no label",
        "1_left": "not an image", "1_right": "truncated file read", "4_left": "label without a photograph",
    }  # fmt: skip
    assert bad["sha256"].isna().to_dict() == {name: name == "4_left" for name in bad.index}
    assert bad["quality"].isna().to_dict() == {name: name != "99_left" for name in bad.index}


@pytest.mark.usefixtures("forked_pools")
def test_looks_do_not_depend_on_the_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drgrade.images.survey.CHUNK", 7)
    monkeypatch.setattr("drgrade.images.survey.WORTH", 5)
    paths = [*sorted((root / "images").iterdir()), None, root / "none.jpg"]
    assert survey_all(paths, 1) == survey_all(paths, 3)
    assert survey_all(paths, 1)[-2:] == [Survey(), Survey(reason="no such file or directory")]


@pytest.mark.parametrize(("of", "order"), [(1, []), (2, [1, 0]), (3, [0, 1, 2]), (3, [2])])
def test_jobs_that_share_the_survey_leave_what_one_job_leaves(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: int, order: list[int]
) -> None:
    monkeypatch.setattr(survey_module, "CHUNK", 5)
    surveyed = []

    def watched(path: Path) -> Survey:
        surveyed.append(path.stem)
        return survey(path)

    monkeypatch.setattr(survey_module, "survey", watched)
    (root / "images/3_left.jpg").write_bytes(b"")
    (root / "images/4_left.jpg").unlink()
    index(tmp_path)
    outputs = [tmp_path / name for name in ("index.parquet", "split.csv", "split.json")]
    whole = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    surveyed.clear()
    for number in order:
        arguments = "folder", Index(), None, tmp_path / "manifest.tsv", outputs[0]
        build_index(*arguments, split=outputs[1], shard=(number, of))
        assert not any(path.exists() for path in outputs)
    index(tmp_path)
    assert len(set(surveyed)) == len(surveyed) == 23
    assert [path.read_bytes() for path in outputs] == whole
    assert not list(tmp_path.glob(".*"))


def test_surveys_of_changed_photographs_are_not_used(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.parquet"
    folders = []
    for number in (0, 0, 1):
        (root / "images/0_left.jpg").write_bytes(unique_jpeg(50 + number))
        download("folder", Download(), tmp_path / "manifest.tsv")
        build_index(
            "folder", Index(), None, tmp_path / "manifest.tsv", out, split=tmp_path / "s.csv", shard=(0, 2)
        )
        folders += [path.name for path in (tmp_path / ".index.parquet.parts").iterdir()]
    assert folders[0] == folders[1] != folders[2]


def test_photographs_that_take_no_part_stay_with_the_reason(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out.csv").write_text("dataset,image_id\nfolder,3_left\nother,4_left\n")
    table = index(tmp_path, Index(min_quality=0.5), exclude=tmp_path / "out.csv")
    assert table.loc["3_left", "status"] == "filtered"
    assert "exclude" in table.loc["3_left", "reason"]
    others = table.drop("3_left")
    low = others["quality"] < 0.5
    assert low.any()
    assert set(others[low]["status"]) == {"filtered"}
    assert others[low]["reason"].str.contains("index.min_quality 0.5").all()
    assert set(others[~low]["status"]) <= {"ok"}
    assert len(table) == 24
    assert "not in folder" not in caplog.text
    (tmp_path / "out.csv").write_text("image_id\n3_left\n3_left.jpg\n")
    assert index(tmp_path, exclude=tmp_path / "out.csv").loc["3_left", "status"] == "filtered"
    assert "out.csv: 1 of 2 image_ids are not in folder, such as 3_left.jpg" in caplog.text
    (tmp_path / "out.csv").write_text("image\n3_left\n")
    with pytest.raises(UserError, match="no column 'image_id'"):
        index(tmp_path, exclude=tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"no such file; commit it or set .*exclude to null"):
        index(tmp_path, exclude=tmp_path / "none.csv")


def test_the_datasets_own_rejects_can_be_left_out() -> None:
    rows = pd.DataFrame({
        "image_id": ["a", "b", "c"], "path": ["a.jpg", "b.jpg", "c.jpg"], "patient_id": ["a", "b", "c"],
        "eye": None, "grade": pd.array([1, 2, None], dtype="Int8"), "subset": "grading",
        "official_split": pd.array([None] * 3, dtype="string"),
        "quality_label": pd.array(["good", "reject", "reject"], dtype="string"), "sha256": ["1", "2", "3"],
    })  # fmt: skip
    looks = [Survey(9, 9, 1.0, 1.0, 1.0, 1.0, 1.0, None)] * 3
    kept = assemble(rows, looks, Index())
    assert kept["status"].tolist() == ["ok", "ok", "unlabelled"]
    assert kept["reason"].tolist() == ["", "", "ungradable, says the dataset"]
    dropped = assemble(rows, looks, Index(drop_rejected=True))
    assert dropped["status"].tolist() == ["ok", "filtered", "filtered"]


def test_the_split_is_a_file_with_its_hash(root: Path, tmp_path: Path) -> None:
    table = index(tmp_path)
    lines = pd.read_csv(tmp_path / "split.csv", dtype=str).set_index("image_id")
    assert lines["split"].to_dict() == table["split"].to_dict()
    about = json.loads((tmp_path / "split.json").read_text())
    assert about["sha256"] == hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()
    assert about["index"] == hashlib.sha256((tmp_path / "index.parquet").read_bytes()).hexdigest()


def test_copies_stay_in_one_split_with_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(1, 12):  # a chain: each patient's right eye is the next one's left
        (root / "images" / f"{n}_left.jpg").write_bytes((root / "images" / f"{n - 1}_right.jpg").read_bytes())
    with caplog.at_level(logging.WARNING):
        table = index(tmp_path, Index(test_fraction=0.0, val_fraction=0.3))
    assert table["split"].nunique() == 1
    assert "11 copies under different patients, kept in one part" in caplog.text


def test_another_encoding_is_a_copy_too(root: Path, tmp_path: Path) -> None:
    (root / "images" / "5_left.jpg").write_bytes(unique_jpeg(0, quality=70))
    fractions: dict[str, Any] = {"test_fraction": 0.0, "val_fraction": 0.5}
    seeds = range(6)
    told = [index(tmp_path, Index(seed=seed, **fractions))["split"] for seed in seeds]
    assert all(split["0_left"] == split["5_left"] for split in told)
    apart = [index(tmp_path, Index(seed=seed, duplicate_bits=None, **fractions))["split"] for seed in seeds]
    assert any(split["0_left"] != split["5_left"] for split in apart)


def test_limit_keeps_whole_patients_of_every_grade(root: Path, tmp_path: Path) -> None:
    table = index(tmp_path, limit=11)
    assert len(table) == 10
    assert set(table["grade"]) == {0, 1, 2, 3, 4}
    assert set(table.groupby("patient_id").size()) == {2}
    assert len(index(tmp_path, limit=1000)) == 24
    with pytest.raises(UserError, match="limit"):
        index(tmp_path, limit=1)


def test_blocks_of_numbers_are_patients_of_the_split(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        UserError, match=r"^datasets\.folder\.numbers_per_patient: the dataset names its patie"
    ):
        index(tmp_path, numbers_per_patient=4)
    names = [f"scan_{n}" for n in range(24)]
    for old, new in zip(sorted((root / "images").iterdir()), names, strict=True):
        old.rename(root / f"images/{new}.jpg")
    lines = ["image,grade", *(f"{name},{n // 5}" for n, name in enumerate(names))]
    (root / "labels.csv").write_text("\n".join(lines))
    table = index(tmp_path, Index(scheme="kfold", folds=3), numbers_per_patient=4)
    assert table.loc[names, "patient_id"].tolist() == [
        f"scan_{n // 4 * 4}-{n // 4 * 4 + 3}" for n in range(24)
    ]
    assert (table.groupby("patient_id")["fold"].nunique() == 1).all()
    assert table["fold"].value_counts().to_dict() == {0: 8, 1: 8, 2: 8}
    assert "No two photographs have the same patient id" not in caplog.text


def test_a_block_of_numbers_loses_only_the_copy_of_an_official_test_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "raw/B. Disease Grading"
    for letter, kind, numbers in (("a", "Training", range(1, 8)), ("b", "Testing", range(1, 4))):
        images = part / f"1. Original Images/{letter}. {kind} Set"
        images.mkdir(parents=True)
        for n in numbers:
            content = n if kind == "Training" or n == 2 else 100 + n  # test 2 is training 2
            (images / f"IDRiD_{n:03}.jpg").write_bytes(unique_jpeg(content))
        lines = ["Image name,Retinopathy grade", *(f"IDRiD_{n:03},{n % 5}" for n in numbers)]
        labels = part / f"2. Groundtruths/{letter}. IDRiD_Disease Grading_{kind} Labels.csv"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text("\n".join(lines))
    (tmp_path / "raw/A. Segmentation").mkdir()
    monkeypatch.setenv("DRGRADE_IDRID_ROOT", str(tmp_path / "raw"))
    manifest, out = tmp_path / "manifest.tsv", tmp_path / "index.parquet"
    download("idrid", Download(), manifest)
    params = Index(scheme="official", val_fraction=0.0)
    build_index("idrid", params, None, manifest, out, split=tmp_path / "split.csv", numbers_per_patient=8)
    table = read_table(out, INDEX).set_index("image_id")
    assert table["patient_id"].nunique() == 2
    assert table["split"].value_counts().to_dict() == {"train": 6, "test": 3}
    assert table["reason"]["B_train_IDRiD_002"] == "a copy of B_test_IDRiD_002 in the official test part"


def test_files_changed_after_the_manifest_are_noticed(root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.tsv"
    download("folder", Download(), manifest)
    with (root / "images" / "5_left.jpg").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"5_left\.jpg: not as .*; delete .*manifest\.tsv and run again$"):
        build_index(
            "folder", Index(), None, manifest, tmp_path / "index.parquet", split=tmp_path / "split.csv"
        )
    assert not (tmp_path / "index.parquet").exists()


def test_manifest_lists_sorted_hashes(root: Path, tmp_path: Path) -> None:
    (root / "images" / ".hidden.jpg").write_bytes(b"x")
    (root / "images" / "half.jpg.partial").write_bytes(b"x")
    assert write_manifest(root, tmp_path / "m.tsv") == 25
    lines = (tmp_path / "m.tsv").read_text().splitlines()
    assert lines[0] == HEADER
    assert lines[1:] == sorted(lines[1:])
    size, digest = read_manifest(tmp_path / "m.tsv")["images/0_left.jpg"]
    content = (root / "images" / "0_left.jpg").read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("text", ["", "no manifest\n", HEADER + "\na\tb\tc\n", HEADER + "\na\n"])
def test_a_broken_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.tsv").write_text(text)
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path / "m.tsv")
    with pytest.raises(UserError, match="run drgrade download first"):
        read_manifest(tmp_path / "none.tsv")


def test_names_and_links_of_all_kinds_are_rows_and_the_others_go_on(root: Path, tmp_path: Path) -> None:
    images = root / "images"
    (images / "0_left.jpg").unlink()
    (images / "0_left.jpg").symlink_to(tmp_path / "moved away.jpg")
    (images / "1_left.jpg").unlink()
    (images / "1_left.jpg").symlink_to("1_left.jpg")
    (images / "24_left.jpeg").mkdir()
    (images / "25\n_left.jpg").write_bytes((images / "3_left.jpg").read_bytes())
    Path(os.fsdecode(bytes(images) + b"/26\xff_left.jpg")).write_bytes(b"x")
    (images / "again").symlink_to(images)
    (images / "27\u202f_left.jpg").write_bytes(unique_jpeg(99))
    table = index(tmp_path)
    assert len(table) == 28
    bad = table[table["status"] == "unreadable"]["reason"]
    assert set(bad.index) == {"0_left", "1_left", "24_left", "25\\n_left", "26\\xff_left"}
    assert bad["0_left"] == "no such file or directory"
    assert bad["1_left"] == "too many levels of symbolic links"
    assert bad["24_left"] == "is a directory"
    assert all("rename the file" in bad[name] for name in ("25\\n_left", "26\\xff_left"))
    assert table.loc["27\u202f_left", "status"] == "unlabelled"
    lines = (tmp_path / "manifest.tsv").read_text().splitlines()
    assert len(lines) == 1 + 28 + 1
    assert sum(line.endswith("unreadable") for line in lines) == 5


def test_an_empty_folder_and_an_unknown_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no photographs"):
        write_manifest(tmp_path, tmp_path / "m.tsv")
    with pytest.raises(UserError, match="spelled"):
        download("idird", Download(), tmp_path / "m.tsv")

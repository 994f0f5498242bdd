import hashlib
import io
import logging
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from drgrade.data.download import HEADER, download, read_manifest, write_manifest
from drgrade.data.index import build_index, read_size
from drgrade.errors import UserError
from drgrade.params import Download, Index
from drgrade.schema import INDEX, read_table

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (48, 64, 3), np.uint8)


def encoded(mode: str, kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def unique_jpeg(n: int) -> bytes:
    """A photograph whose bytes no other one has."""
    return encoded("RGB", "JPEG", comment=f"number {n}".encode())


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


def index(tmp_path: Path, params: Index | None = None, limit: int | None = None):
    manifest, out = tmp_path / "manifest.tsv", tmp_path / "index.parquet"
    download("folder", Download(), manifest)
    build_index("folder", params or Index(), limit, manifest, out)
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
    good = [
        "0_left",
        "2_left",
        "2_right",
        "3_left",
        "3_right",
    ]  # the truncated one is found when it is decoded
    assert set(table.loc[good, "status"]) == {"ok"}
    assert set(table.loc[good, "width"]) == {64}
    bad = table[table["status"] != "ok"]
    assert bad["status"].to_dict() == {
        "0_right": "unreadable", "1_left": "unreadable", "1_right": "unreadable",
        "4_left": "missing", "99_left": "unlabelled",
    }  # fmt: skip
    assert bad["reason"].str.len().gt(0).all()
    assert bad.loc["0_right", "reason"] == "empty file"
    assert bad.loc["1_left", "reason"] == "not an image"
    assert bad.loc["99_left", "reason"] == "no label"
    assert bad["sha256"].isna().to_dict() == {name: name == "4_left" for name in bad.index}


def test_size_is_that_of_the_turned_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(encoded("RGB", "JPEG", exif=exif))
    assert read_size(tmp_path / "turned.jpg") == (48, 64)


def test_copies_stay_in_one_split_with_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(1, 12):  # a chain: each patient's right eye is the next one's left
        (root / "images" / f"{n}_left.jpg").write_bytes((root / "images" / f"{n - 1}_right.jpg").read_bytes())
    with caplog.at_level(logging.WARNING):
        table = index(tmp_path, Index(test_fraction=0.0, val_fraction=0.3))
    assert table["split"].nunique() == 1
    assert "same photograph" in caplog.text


def test_limit_keeps_whole_patients_of_every_grade(root: Path, tmp_path: Path) -> None:
    table = index(tmp_path, limit=11)
    assert len(table) == 10
    assert set(table["grade"]) == {0, 1, 2, 3, 4}
    assert set(table.groupby("patient_id").size()) == {2}
    assert len(index(tmp_path, limit=1000)) == 24
    with pytest.raises(UserError, match="limit"):
        index(tmp_path, limit=1)


def test_files_changed_after_the_manifest_are_noticed(root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.tsv"
    download("folder", Download(), manifest)
    with (root / "images" / "5_left.jpg").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="run drgrade download"):
        build_index("folder", Index(), None, manifest, tmp_path / "index.parquet")
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


def test_an_empty_folder_and_an_unknown_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no photographs"):
        write_manifest(tmp_path, tmp_path / "m.tsv")
    with pytest.raises(UserError, match="spelled"):
        download("idird", Download(), tmp_path / "m.tsv")


def test_ten_thousand_rows_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "raw" / "images"
    images.mkdir(parents=True)
    (images / "source.jpg").write_bytes(unique_jpeg(0))
    for n in range(10_000):
        os.link(images / "source.jpg", images / f"{n}_left.jpg")
    (tmp_path / "raw" / "labels.csv").write_text(
        "image,grade\n" + "".join(f"{n}_left,{n % 5}\n" for n in range(10_000))
    )
    lines = [
        f"images/{n}_left.jpg\t{(images / 'source.jpg').stat().st_size}\t{n:064x}" for n in range(10_000)
    ]
    lines.append(f"images/source.jpg\t{(images / 'source.jpg').stat().st_size}\t{'f' * 64}")
    (tmp_path / "m.tsv").write_text("\n".join([HEADER, *lines]) + "\n")
    monkeypatch.setenv("DRGRADE_FOLDER_ROOT", str(tmp_path / "raw"))
    start = time.process_time()
    build_index("folder", Index(), None, tmp_path / "m.tsv", tmp_path / "i.parquet")
    assert time.process_time() - start < 6  # 100,000 in a minute of one core
    assert len(read_table(tmp_path / "i.parquet", INDEX)) == 10_001

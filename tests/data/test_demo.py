import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from drgrade.data import demo as module
from drgrade.data.demo import Demo, plan_graded, plan_patients, plan_segmentation
from drgrade.data.icdr import icdr_grade
from drgrade.data.painting import paint
from drgrade.errors import UserError
from drgrade.params import Demo as DemoParams
from drgrade.params import Download

SMALL = DemoParams(patients=5, segmentation=8, width=256)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    Demo().download(root, Download(demo=SMALL))
    return root


def test_same_seed_same_bytes_whatever_the_number_of_workers(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 1, 2})
    Demo().download(tmp_path, Download(demo=SMALL))
    assert snapshot(tmp_path) == snapshot(painted)


def test_written_labels_are_the_grade_of_the_lesions(painted: Path) -> None:
    written: dict[str, int] = {}
    for name in ("trainLabels.csv", "retinopathy_solution.csv"):
        with (painted / "eyepacs" / name).open() as file:
            written |= {line["image"]: int(line["level"]) for line in csv.DictReader(file)}
    plan = plan_patients(SMALL)
    assert written == {Path(photo.path).stem: icdr_grade(photo.eye.lesions) for photo in plan}
    assert set(written.values()) == {0, 1, 2, 3, 4}


def test_read_finds_every_photograph_and_label(painted: Path) -> None:
    table = Demo().read(painted)
    assert table["image_id"].is_unique
    assert table["path"].notna().all()
    assert all((painted / path).is_file() for path in table["path"])
    graded = table[table["subset"] == "grading"]
    assert graded["grade"].notna().all()
    assert len(graded) == 2 * SMALL.patients + module.GRADED
    assert (table["subset"] == "segmentation").sum() == SMALL.segmentation
    assert set(table["official_split"]) == {"train", "val", "test"}
    assert Counter(table["eye"].dropna()) == {"left": SMALL.patients, "right": SMALL.patients}


def test_masks_on_disk_are_what_was_painted(painted: Path) -> None:
    photograph = plan_segmentation(SMALL)[1]
    image, masks = paint(photograph.eye)
    found = Demo().masks(painted, "A_train_IDRiD_02")
    assert set(found) == set(masks)
    for code, path in found.items():
        mask = Image.open(path)
        assert mask.mode == "P"
        assert mask.getpalette()[:6] == [0, 0, 0, 255, 0, 0]
        assert np.array_equal(np.asarray(mask), masks[code].astype(np.uint8))
    stored = cv2.imread(str(painted / photograph.path))[..., ::-1]
    assert np.abs(stored.astype(int) - image).mean() < 3  # JPEG loses little


def test_idrid_label_file_has_the_official_shape(painted: Path) -> None:
    text = (painted / "idrid" / "B. Disease Grading" / "2. Groundtruths" /
            "a. IDRiD_Disease Grading_Training Labels.csv").read_bytes()  # fmt: skip
    lines = text.split(b"\r\n")
    assert lines[0] == b"Image name,Retinopathy grade,Risk of macular edema,,,,,,,,,"
    assert all(line.count(b",") == 11 for line in lines[:-1])


def test_only_what_is_missing_is_painted_again(painted: Path) -> None:
    before = snapshot(painted)
    photograph, kept = painted / plan_patients(SMALL)[0].path, painted / plan_patients(SMALL)[1].path
    photograph.unlink()
    mask = next((painted / "idrid").rglob("*_MA.tif"))
    mask.unlink()
    time = kept.stat().st_mtime_ns
    Demo().download(painted, Download(demo=SMALL))
    assert snapshot(painted) == before
    assert kept.stat().st_mtime_ns == time


def test_other_parameters_replace_the_pictures(tmp_path: Path) -> None:
    Demo().download(tmp_path, Download(demo=DemoParams(patients=6, segmentation=4, width=256)))
    Demo().download(tmp_path, Download(demo=DemoParams(patients=5, segmentation=4, width=256, seed=8)))
    table = Demo().read(tmp_path)
    assert len(table) == 10 + 4 + module.GRADED
    assert table["path"].notna().all()
    assert table.loc[table["subset"] == "grading", "grade"].notna().all()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "eyepacs").mkdir()
    (tmp_path / "eyepacs" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not painted by drgrade"):
        Demo().download(tmp_path, Download(demo=SMALL))
    assert (tmp_path / "eyepacs" / "mine.jpg").read_bytes() == b"mine"


def test_default_plan_is_balanced_correlated_and_rich() -> None:
    params = DemoParams()
    plan = plan_patients(params)
    counts = Counter(photograph.grade for photograph in plan)
    assert min(counts.values()) >= 0.1 * len(plan)
    assert counts[0] == max(counts.values())
    pairs = np.array([[plan[n].grade, plan[n + 1].grade] for n in range(0, len(plan), 2)])
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() <= 1
    assert 0.5 < np.mean(pairs[:, 0] == pairs[:, 1]) < 0.95
    found = Counter(code for photograph in plan_segmentation(params) for code in photograph.masks)
    assert all(found[code] >= 0.9 * params.segmentation for code in ("MA", "HE", "EX", "SE"))
    assert {photograph.grade for photograph in plan_graded(params)} == {0, 1, 2, 3, 4}

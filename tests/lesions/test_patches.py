import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.lesions.patches import fitting, make_patches, read_patches, read_raw
from drgrade.params import Patches
from drgrade.schema import CROPS, INDEX, LESION_BOXES, write_table

PAPER = Patches(size=128, min_score=0.5, border=5)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 10, 138, 138), True),  # exactly the patch
        ((10, 10, 138.01, 20), False),
        ((10, 10, 20, 138.01), False),
        ((5, 10, 20, 20), False),  # the border itself is out
        ((5.01, 10, 20, 20), True),
        ((10, 5, 20, 20), False),
        ((490, 490, 507, 500), False),
        ((490, 490, 506.99, 506.99), True),
        ((490, 490, 500, 507), False),
    ],
)
def test_filter_of_the_paper(box: tuple[float, ...], kept: bool) -> None:
    """Specification 6.2, with its strict and non-strict comparisons."""
    assert fitting(np.array([box], float), PAPER, 512).tolist() == [kept]


def test_border_scales_with_the_crop() -> None:
    boxes = np.array([[2.5, 9, 20, 20], [2.6, 9, 20, 20], [200, 9, 253.5, 20], [200, 9, 253.4, 20]])
    assert fitting(boxes, PAPER, 256).tolist() == [False, True, False, True]


ROWS = [
    # image_id, subset, split, fold, status
    ("t1", "grading", "train", None, "ok"),
    ("t2", "grading", "train", None, "ok"),
    ("v1", "grading", "val", None, "ok"),
    ("x1", "grading", "test", None, "ok"),
    ("m1", "segmentation", "train", None, "ok"),
    ("m2", "segmentation", "val", None, "ok"),
    ("m3", "segmentation", "test", None, "ok"),
    ("u1", "grading", "train", None, "unreadable"),
]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    write_index(tmp_path, ROWS)
    ids = [row[0] for row in ROWS]
    crops = pd.DataFrame(
        {"image_id": ids, "row": range(len(ids)), "x0": 100, "y0": -50, "x1": 1124, "y1": 974}
    )
    crops = crops.assign(scale=0.25, rule="disc", status=["ok"] * 7 + ["failed"], reason="")
    write_table(crops, tmp_path / "crops.parquet", CROPS)
    found = [(name, 500.0, 350.0, 540.0, 390.0, 0.9, "MA") for name in ids]
    found += [
        ("t1", 600.0, 450.0, 700.0, 500.0, 0.95, "EX"),
        ("t1", 600.0, 550.0, 700.0, 600.0, 0.3, "HE"),  # not above min_score
        ("t2", 100.0, 350.0, 140.0, 390.0, 0.9, "HE"),  # at the border
        ("t2", 200.0, 200.0, 460.0, 230.0, 0.9, "HE"),  # wider than a patch
    ]
    write_table(pd.DataFrame(found, columns=list(LESION_BOXES)), tmp_path / "lesions.parquet", LESION_BOXES)
    return tmp_path


def write_index(root: Path, rows: list[tuple[str, str, str, int | None, str]]) -> None:
    index = pd.DataFrame(rows, columns=["image_id", "subset", "split", "fold", "status"])
    for column in INDEX:
        if column not in index:
            index[column] = None
    write_table(index, root / "index.parquet", INDEX)


def make(root: Path, params: Patches) -> tuple[dict, dict]:
    paths = [root / name for name in ("index.parquet", "crops.parquet", "lesions.parquet", "p.pkl", "s.json")]
    make_patches(paths[0], paths[1], 256, paths[2], params, paths[3], paths[4])
    return read_patches(paths[3]), json.loads(paths[4].read_text())


def test_patches_lie_in_crop_space_and_never_in_the_test_split(tables: Path) -> None:
    patches, statistics = make(tables, Patches(size=64, min_score=0.3))
    box = (100.0, 100.0, 110.0, 110.0)  # (500 - 100) / 4, (350 + 50) / 4, ...
    assert patches == {
        "train": {"m1": [box], "t1": [(125.0, 125.0, 150.0, 137.5), box], "t2": [box]},
        "val": {"v1": [box]},
    }
    assert list(patches["train"]) == ["m1", "t1", "t2"]
    at = statistics["thresholds"]
    assert list(at) == ["0.3", "0.5", "0.7", "0.8", "0.9"]
    assert at["0.8"]["train"] == {"images": 3, "boxes": 4, "lesions": {"MA": 3, "HE": 0, "EX": 1, "SE": 0}}
    assert at["0.9"]["train"] == {"images": 1, "boxes": 1, "lesions": {"MA": 0, "HE": 0, "EX": 1, "SE": 0}}
    assert at["0.3"]["val"]["boxes"] == 1


def test_kinds_can_be_left_out(tables: Path) -> None:
    patches, statistics = make(tables, Patches(size=64, min_score=0.25, lesions=["EX", "HE"]))
    assert patches == {
        "train": {"t1": [(125.0, 125.0, 150.0, 137.5), (125.0, 150.0, 150.0, 162.5)]},
        "val": {},
    }
    assert "0.25" in statistics["thresholds"], "the chosen score is always there"


def test_under_cross_validation_every_graded_photograph_trains(tables: Path) -> None:
    write_index(tables, [(*row[:3], 1 if row[1] == "grading" else None, row[4]) for row in ROWS])
    patches, _ = make(tables, Patches(size=64))
    assert sorted(patches["train"]) == ["m1", "t1", "t2", "v1", "x1"]
    assert patches["val"] == {}


def test_the_same_boxes_give_the_same_bytes(tables: Path) -> None:
    make(tables, Patches(size=64))
    before = (tables / "p.pkl").read_bytes()
    lesions = pd.read_parquet(tables / "lesions.parquet").sample(frac=1, random_state=0)
    write_table(lesions, tables / "lesions.parquet", LESION_BOXES)
    make(tables, Patches(size=64))
    assert (tables / "p.pkl").read_bytes() == before
    box = pickle.loads(before)["train"]["m1"][0]
    assert [type(value) for value in box] == [float] * 4


def test_nothing_left_is_said_with_the_best_score(tables: Path) -> None:
    with pytest.raises(
        UserError, match=r"lesions\.parquet: none of 8 .*0\.99.*the best that fits scores 0\.95"
    ):
        make(tables, Patches(size=64, min_score=0.99))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch should_not_exist",)


@pytest.mark.parametrize("content", [Evil(), {"train": {"a": [Evil()]}}, np.zeros(3), Path("x")])
def test_a_pickle_with_anything_but_numbers_is_refused(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="not a pickle of plain numbers"):
        read_patches(tmp_path / "p.pkl")
    assert not (tmp_path / "should_not_exist").exists()


@pytest.mark.parametrize(
    "content", [[1, 2], {"train": [1]}, {"train": {"a": [(1, 2, 3)]}}, {"train": {"a": ["xy"]}}]
)
def test_another_structure_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"p\.pkl"):
        read_patches(tmp_path / "p.pkl")


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_patches(tmp_path / "p.pkl")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"train": {}})[:-3])
    with pytest.raises(UserError, match="not a pickle of plain numbers"):
        read_patches(tmp_path / "p.pkl")


def test_published_patches_with_numpy_scalars_are_read(tmp_path: Path) -> None:
    box = tuple(np.float32(value) for value in (1, 2, 3.5, 4))
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"train": {"10_left.jpeg": [box]}, "val": {}}, protocol=2))
    assert read_patches(tmp_path / "p.pkl") == {"train": {"10_left.jpeg": [(1.0, 2.0, 3.5, 4.0)]}, "val": {}}


def test_raw_predictions_with_and_without_the_published_swap(tmp_path: Path) -> None:
    """Crop of 1000 rows and 1200 columns: x = 0.9 W lands at 461 of 512, swapped at 553 and is lost (6.2)."""
    near, far = (600.0, 500.0, 620.0, 520.0), (1080.0, 500.0, 1090.0, 510.0)
    rows = [(1000, 1200, *map(np.float32, box), np.float32(0.9), 1) for box in (near, far)]
    rows += [(1000, 1200, *near, 0.5, 1), (1000, 1200, *near, 0.9, 3)]
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"train": {"1_left.jpeg": rows}, "val": {"2_left.jpeg": []}})
    )
    params = Patches(size=128, min_score=0.5, lesions=["HE"])
    right = read_raw(tmp_path / "a.pkl", params, 512, legacy_swap=False)
    swapped = read_raw(tmp_path / "a.pkl", params, 512, legacy_swap=True)
    across, down = 512 / 1200, 512 / 1000
    assert list(right["train"]) == ["1_left.jpeg"]
    np.testing.assert_allclose(
        right["train"]["1_left.jpeg"],
        [[x1 * across, y1 * down, x2 * across, y2 * down] for x1, y1, x2, y2 in (near, far)],
    )
    x1, y1, x2, y2 = near
    np.testing.assert_allclose(
        swapped["train"]["1_left.jpeg"], [[x1 * down, y1 * across, x2 * down, y2 * across]]
    )
    assert right["val"] == swapped["val"] == {}


def test_a_patch_file_is_no_raw_prediction_file(tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"train": {"a": [(1.0, 2.0, 3.0, 4.0)]}}))
    with pytest.raises(UserError, match="not raw predictions"):
        read_raw(tmp_path / "p.pkl", PAPER, 512, legacy_swap=False)

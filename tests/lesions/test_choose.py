import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.lesions.choose import make_patches
from drgrade.lesions.patches import read_patches
from drgrade.params import LesionBoxes, Patches, Source
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table, write_table

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
            index[column] = {"width": 1200, "height": 1000}.get(column)
    write_table(index, root / "index.parquet", INDEX)


def make(root: Path, params: Patches, source: Source = "detector") -> tuple[dict, dict]:
    make_patches(
        "folder", root / "index.parquet", root / "crops.parquet", 256, root / "lesions.parquet",
        LesionBoxes(), source, params, root / "p.pkl", root / "boxes.parquet", root / "s.json",
    )  # fmt: skip
    return read_patches(root / "p.pkl"), json.loads((root / "s.json").read_text())


def test_the_table_of_boxes_goes_with_the_pickle(tables: Path) -> None:
    """Kinds and scores for each box, in the pickle's order within a photograph."""
    patches, _ = make(tables, Patches(size=64, min_score=0.3))
    boxes = read_table(tables / "boxes.parquet", LESION_BOXES)
    assert boxes["image_id"].is_monotonic_increasing
    found = {
        str(name): [tuple(row) for row in rows[["x1", "y1", "x2", "y2"]].to_numpy().tolist()]
        for name, rows in boxes.groupby("image_id")
    }
    assert found == patches["train"] | patches["val"]
    assert (boxes["score"] > 0.3).all()
    assert set(boxes["lesion"]) <= set(LESIONS)


def test_patches_lie_in_crop_space_and_never_in_the_test_split(tables: Path) -> None:
    patches, statistics = make(tables, Patches(size=64, min_score=0.3))
    box = (100.0, 100.0, 110.0, 110.0)  # (500 - 100) / 4, (350 + 50) / 4, ...
    assert patches == {
        "train": {"m1": [box], "t1": [(125.0, 125.0, 150.0, 137.5), box], "t2": [box]},
        "val": {"v1": [box]},
    }
    assert list(patches["train"]) == ["m1", "t1", "t2"]
    assert (statistics["source"], statistics["min_score"]) == ("detector", 0.3)
    at = statistics["thresholds"]
    assert list(at) == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert at["0.8"]["train"] == {"images": 3, "boxes": 4, "lesions": {"MA": 3, "HE": 0, "EX": 1, "SE": 0}}
    assert at["0.9"]["train"] == {"images": 1, "boxes": 1, "lesions": {"MA": 0, "HE": 0, "EX": 1, "SE": 0}}
    assert statistics["chosen"] == at["0.5"]
    assert at["0.5"]["val"] == {"images": 1, "boxes": 1, "lesions": {"MA": 1, "HE": 0, "EX": 0, "SE": 0}}


def test_kinds_can_be_left_out(tables: Path) -> None:
    patches, statistics = make(tables, Patches(size=64, min_score=0.25, lesions=["EX", "HE"]))
    assert patches == {
        "train": {"t1": [(125.0, 125.0, 150.0, 137.5), (125.0, 150.0, 150.0, 162.5)]},
        "val": {},
    }
    assert statistics["chosen"]["train"]["lesions"] == {"MA": 0, "HE": 1, "EX": 1, "SE": 0}
    assert statistics["thresholds"]["0.5"]["train"]["lesions"] == {"MA": 0, "HE": 0, "EX": 1, "SE": 0}


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


def test_photographs_with_few_boxes_are_left_out(tables: Path) -> None:
    patches, statistics = make(tables, Patches(size=64, min_score=0.25, min_count=2))
    assert {name: len(boxes) for name, boxes in patches["train"].items()} == {"t1": 3}
    assert patches["val"] == {}
    assert statistics["chosen"]["train"]["images"] == 1
    assert statistics["thresholds"]["0.5"]["train"] == {
        "images": 1, "boxes": 2, "lesions": {"MA": 1, "HE": 0, "EX": 1, "SE": 0}
    }  # fmt: skip
    assert statistics["thresholds"]["0.9"]["train"]["images"] == 0, "one box is left above 0.9"
    with pytest.raises(UserError, match="min_count 4"):
        make(tables, Patches(size=64, min_score=0.25, min_count=4))


def test_random_boxes_have_the_number_and_sizes_of_the_detectors(tables: Path) -> None:
    found, found_statistics = make(tables, Patches(size=64))
    before = (tables / "p.pkl").read_bytes()
    chance, statistics = make(tables, Patches(size=64), "random")
    first = (tables / "p.pkl").read_bytes()
    assert statistics == found_statistics | {"source": "random"}
    assert {split: list(images) for split, images in chance.items()} == {
        split: list(images) for split, images in found.items()
    }
    for name, boxes in chance["train"].items():
        np.testing.assert_allclose(sides(boxes), sides(found["train"][name]))
        assert not np.allclose(boxes, found["train"][name])
    assert len({boxes[-1] for boxes in chance["train"].values()}) == 3, "a draw for each photograph"
    make(tables, Patches(size=64), "random")
    assert (tables / "p.pkl").read_bytes() == first != before
    other, _ = make(tables, Patches(size=64, seed=2), "random")
    assert other["train"]["t2"] != chance["train"]["t2"]


def sides(boxes: list[tuple[float, ...]]) -> np.ndarray:
    array = np.array(boxes)
    return array[:, 2:] - array[:, :2]


def test_random_boxes_of_a_photograph_do_not_depend_on_others(tables: Path) -> None:
    everything, _ = make(tables, Patches(size=64), "random")
    lesions = pd.read_parquet(tables / "lesions.parquet")
    write_table(lesions[lesions["image_id"] == "t2"], tables / "lesions.parquet", LESION_BOXES)
    alone, _ = make(tables, Patches(size=64), "random")
    assert alone["train"] == {"t2": everything["train"]["t2"]}


def masks_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every photograph for lesions, and t1, the mask of a haemorrhage of 40 x 20 pixels and a speck."""
    monkeypatch.setenv("DRGRADE_IDRID_ROOT", str(root))
    mask = np.zeros((1000, 1200), np.uint8)
    mask[350:370, 500:540] = 1
    mask[700, 700] = 1
    Image.fromarray(mask * 76).save(root / "he.png")

    def masks(_: object, raw: Path, image_id: str) -> dict[str, Path]:
        assert raw == root
        return {"HE": root / "he.png"} if image_id[0] == "m" or image_id == "t1" else {}

    monkeypatch.setattr(DATASETS.get("idrid"), "masks", masks)


def make_from_masks(
    root: Path, params: Patches, boxes: LesionBoxes, source: Source = "masks"
) -> tuple[dict, dict]:
    make_patches(
        "idrid", root / "index.parquet", root / "crops.parquet", 256, None, boxes, source, params,
        root / "p.pkl", root / "boxes.parquet", root / "s.json",
    )  # fmt: skip
    return read_patches(root / "p.pkl"), json.loads((root / "s.json").read_text())


def test_boxes_of_masks_need_no_detections(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks_of(tables, monkeypatch)
    params = Patches(size=64, min_score=0.9)
    patches, statistics = make_from_masks(tables, params, LesionBoxes(min_area=4))
    # m2 and m3 are not for learning; (500 - 100) / 4, (350 + 50) / 4, ...
    assert patches == {"train": {key: [(100.0, 100.0, 110.0, 105.0)] for key in ("m1", "t1")}, "val": {}}
    assert statistics == {
        "chosen": {
            "train": {"images": 2, "boxes": 2, "lesions": {"MA": 0, "HE": 2, "EX": 0, "SE": 0}},
            "val": {"images": 0, "boxes": 0, "lesions": {"MA": 0, "HE": 0, "EX": 0, "SE": 0}},
        },
        "min_score": None,
        "published": None,
        "source": "masks",
        "thresholds": {},
    }
    published_rules, _ = make_from_masks(tables, params, LesionBoxes(mode="parity"))
    # (x - 1, y - 1, x + w, y + h) of specification 4.1, and the speck
    assert published_rules["train"]["m1"] == [
        (99.75, 99.75, 110.0, 105.0),
        (149.75, 187.25, 150.25, 187.75),
    ]
    with pytest.raises(UserError, match="lesion masks: none of 2 boxes passes"):
        make_from_masks(tables, Patches(size=64, lesions=["MA"]), LesionBoxes())


def test_masks_of_another_size_or_none_are_refused(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks_of(tables, monkeypatch)
    write_index(tables, [(*row[:2], "test" if row[0] in ("m1", "t1") else row[2], *row[3:]) for row in ROWS])
    params = Patches(size=64)
    with pytest.raises(UserError, match="no training photograph of 'idrid' has lesion masks"):
        make_from_masks(tables, params, LesionBoxes())
    write_index(tables, ROWS)
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tables / "he.png")
    with pytest.raises(UserError, match=r"he\.png: 20 x 10 pixels, but its photograph has 1200 x 1000"):
        make_from_masks(tables, params, LesionBoxes())


def test_detections_are_asked_for_when_they_are_needed(tables: Path) -> None:
    with pytest.raises(UserError, match=r"needs lesions\.parquet"):
        make_from_masks(tables, Patches(size=64), LesionBoxes(), "detector")


EDGES = [
    # box in a crop of 1024 x 1024, score, class, kept at 512 px crops, 128 px, 0.5, 5 px
    ((20, 20, 276, 276), 0.9, 0, True),  # 128 px
    ((20, 20, 276.5, 276), 0.9, 0, False),
    ((20, 20, 276, 276.5), 0.9, 0, False),
    ((10, 20, 40, 40), 0.9, 1, False),  # 5 px from the left
    ((10.5, 20, 40, 40), 0.9, 1, True),
    ((20, 10, 40, 40), 0.9, 1, False),
    ((20, 10.5, 40, 40), 0.9, 1, True),
    ((980, 20, 1014, 40), 0.9, 2, False),  # 507 of 512
    ((980, 20, 1013.5, 40), 0.9, 2, True),
    ((20, 980, 40, 1014), 0.9, 2, False),
    ((20, 980, 40, 1013.5), 0.9, 2, True),
    ((100, 100, 110, 110), 0.5, 3, False),  # the score itself
    ((100, 100, 110, 110), 0.5625, 3, True),
]


@pytest.fixture
def eyepacs(tmp_path: Path) -> Path:
    return write_eyepacs(tmp_path)


def write_eyepacs(root: Path) -> Path:
    """An index of EyePACS with crops of 1024 x 1024, and of 1200 columns and 1000 rows for 3_left."""
    names = [("1_left", "train"), ("2_left", "val"), ("3_left", "train"), ("4_left", "test")]
    write_index(root, [(name, "grading", split, None, "ok") for name, split in names])
    crops = pd.DataFrame({"image_id": [name for name, _ in names], "row": range(4), "x0": 7, "y0": 9})
    crops = crops.assign(x1=[1031, 1031, 1207, 1031], y1=[1033, 1033, 1009, 1033], scale=0.5, rule="o_O")
    write_table(crops.assign(status="ok", reason=""), root / "crops.parquet", CROPS)
    return root


def make_published(
    root: Path, content: object, size: int = 512, source: Source = "detector", **changes: object
) -> tuple[dict, dict]:
    (root / "released.pkl").write_bytes(pickle.dumps(content, protocol=2))
    values = {"size": size // 4, "min_score": 0.5, "border": 5, "published": str(root / "released.pkl")}
    params = Patches.model_validate(values | changes)
    make_patches(
        "eyepacs", root / "index.parquet", root / "crops.parquet", size, None, LesionBoxes(), source, params,
        root / "p.pkl", root / "boxes.parquet", root / "s.json",
    )  # fmt: skip
    return read_patches(root / "p.pkl"), json.loads((root / "s.json").read_text())


def detections(edges: list, down: int = 1024, across: int = 1024) -> list[tuple]:
    return [(down, across, *map(np.float32, box), np.float32(score), kind) for box, score, kind, _ in edges]


def test_published_raw_predictions_are_filtered_as_published(eyepacs: Path) -> None:
    content = {"train": {"1_left.jpeg": detections(EDGES), "4_left.jpeg": detections(EDGES)},
               "val": {"2_left.jpeg": detections(EDGES[:1]), "9_right.jpeg": detections(EDGES)}}  # fmt: skip
    patches, statistics = make_published(eyepacs, content)
    kept = [tuple(value / 2 for value in box) for box, _, _, keep in EDGES if keep]
    assert sorted(patches["train"]["1_left"]) == sorted(kept)
    assert {split: list(images) for split, images in patches.items()} == {
        "train": ["1_left"], "val": ["2_left"]
    }, "the own test split stays out, whatever the file calls it"  # fmt: skip
    expected = {"images": 1, "boxes": 6, "lesions": {"MA": 1, "HE": 2, "EX": 2, "SE": 1}}
    assert statistics["chosen"]["train"] == expected
    assert statistics["thresholds"]["0.6"]["train"]["boxes"] == 5
    half, _ = make_published(eyepacs, content, size=256)
    assert sorted(half["train"]["1_left"]) == sorted(tuple(value / 2 for value in box) for box in kept)
    only, _ = make_published(eyepacs, content, lesions=["SE"])
    assert only == {"train": {"1_left": [(50.0, 50.0, 55.0, 55.0)]}, "val": {}}


def test_published_patches_are_taken_as_they_are(eyepacs: Path) -> None:
    boxes = [tuple(value / 2 for value in box) for box, _, _, _ in EDGES[:11]]
    kept = [box for box, (*_, keep) in zip(boxes, EDGES, strict=False) if keep]
    patches, statistics = make_published(
        eyepacs, {"train": {"1_left.jpeg": boxes}, "val": {"4_left.jpeg": boxes}}, legacy_swap=True
    )
    assert patches == {"train": {"1_left": sorted(kept)}, "val": {}}
    assert statistics["chosen"]["train"] == {"images": 1, "boxes": 5}, "it knows no kinds"
    assert (statistics["published"], statistics["min_score"]) == ("released.pkl", None)
    assert statistics["thresholds"] == {}, "nor scores"
    half, _ = make_published(eyepacs, {"train": {"1_left": boxes}}, size=256)
    assert half["train"]["1_left"] == [tuple(value / 2 for value in box) for box in sorted(kept)]
    with pytest.raises(UserError, match=r"patches.lesions: .*released\.pkl does not tell kinds"):
        make_published(eyepacs, {"train": {"1_left": boxes}}, lesions=["MA"])


def published_filter(rows: list[tuple], swap: bool) -> list[tuple[float, ...]]:
    """The rule of specification 6.2, a detection at a time."""
    kept = []
    for down, across, x1, y1, x2, y2, score, _ in rows:
        sx, sy = (512 / down, 512 / across) if swap else (512 / across, 512 / down)
        x1, x2, y1, y2 = x1 * sx, x2 * sx, y1 * sy, y2 * sy
        small = x2 - x1 <= 128 and y2 - y1 <= 128
        if small and score > 0.5 and x1 > 5 and y1 > 5 and x2 < 507 and y2 < 507:
            kept.append((x1, y1, x2, y2))
    return sorted(kept)


corner = st.integers(0, 8000).map(lambda value: value / 8)
side = st.integers(1, 2800).map(lambda value: value / 8)
detection = st.tuples(corner, corner, side, side, st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 3)).map(
    lambda d: (1000, 1200, d[0], d[1], d[0] + d[2], d[1] + d[3], d[4], d[5])
)


@given(st.lists(detection, min_size=1, max_size=30), st.booleans())
def test_any_raw_predictions_give_the_published_patches(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], swap: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        root.mkdir()
        write_eyepacs(root)
    sure = (1000, 1200, 500.0, 500.0, 510.0, 510.0, 0.75, 0)
    patches, _ = make_published(root, {"train": {"3_left.jpeg": [*rows, sure]}}, legacy_swap=swap)
    expected = published_filter([*rows, sure], swap)
    np.testing.assert_allclose(sorted(patches["train"]["3_left"]), expected, rtol=1e-12)


def test_random_boxes_can_stand_for_published_ones(eyepacs: Path) -> None:
    content = {"train": {"1_left.jpeg": detections(EDGES)}}
    published, _ = make_published(eyepacs, content)
    chance, _ = make_published(eyepacs, content, source="random")
    np.testing.assert_allclose(sides(chance["train"]["1_left"]), sides(published["train"]["1_left"]))
    assert not np.allclose(chance["train"]["1_left"], published["train"]["1_left"])


def test_raw_predictions_on_other_crops_are_passed_over(eyepacs: Path) -> None:
    good, bad = detections(EDGES[:1]), detections(EDGES[:1], 1024, 1050)
    patches, _ = make_published(eyepacs, {"train": {"1_left.jpeg": good, "3_left.jpeg": good}})
    assert list(patches["train"]) == ["1_left"]
    with pytest.raises(UserError, match=r"released\.pkl: none of its 1 photographs .*cropped to our size"):
        make_published(eyepacs, {"train": {"1_left.jpeg": bad}})
    with pytest.raises(UserError, match=r"9_left\.jpeg, \.\.\.\) are in our training or validation split"):
        make_published(eyepacs, {"train": {"9_left.jpeg": good}})

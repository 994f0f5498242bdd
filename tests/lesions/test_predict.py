import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from drgrade.errors import UserError
from drgrade.lesions import predict
from drgrade.lesions.found import Found, found_table
from drgrade.lesions.predict import detect_lesions
from drgrade.lesions.tile_search import merge
from drgrade.params import LesionBoxes, Lesions, Segmentation
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, write_table
from drgrade.segmentation.network import SegmentationNetwork

SQUARES = {
    "a": [(40, 40, 60, 56, "EX"), (118, 90, 138, 110, "EX"), (200, 30, 216, 46, "SE")],
    "b": [(150, 100, 170, 120, "SE")],
    "c": [],
}
SMALL = Lesions(min_score=0.8, batch_size=3)
CUT = {"scale": 1.0, "tile": 64, "overlap": 0.45}
COLOURS = {"EX": (255, 255, 0), "SE": (0, 255, 255)}


class ColourDetector:
    """Finds the coloured squares exactly; stands in for a trained network."""

    batches: list[int]
    readers: ClassVar[set[int]] = set()
    dies_after: int | None = None

    def __init__(self, folder: Path, min_score: float) -> None:
        type(self).batches = []

    def prepare(self, tile: np.ndarray) -> np.ndarray:
        type(self).readers.add(threading.get_ident())
        return tile

    def detect(self, tiles: list[np.ndarray]) -> list[Found]:
        if len(self.batches) == self.dies_after:
            raise KeyboardInterrupt
        self.batches.append(len(tiles))
        return [self.find(tile) for tile in tiles]

    def find(self, tile: np.ndarray) -> Found:
        rows = []
        for lesion, colour in COLOURS.items():
            hit = (np.abs(tile.astype(int) - colour) < 110).all(axis=2)
            for ys, xs in ndimage.find_objects(ndimage.label(hit)[0]):
                whole = min(hit[ys, xs].size / 64, 1)
                rows.append(
                    ([xs.start, ys.start, xs.stop, ys.stop], 0.3 + 0.6 * whole, LESIONS.index(lesion))
                )
        boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
        return Found(
            np.array(boxes, float).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
        )


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photographs with coloured squares at known places, and one that is broken."""
    monkeypatch.setenv("DRGRADE_SQUARES_ROOT", str(tmp_path))
    monkeypatch.setattr(predict, "TileDetector", ColourDetector)
    for name, squares in SQUARES.items():
        picture = np.full((160, 260, 3), (90, 40, 20), np.uint8)
        for x1, y1, x2, y2, lesion in squares:
            picture[y1:y2, x1:x2] = COLOURS[lesion]
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "z.png").write_bytes(b"no picture")
    ids = ["b", "z", "c", "a", "left_out"]
    index = pd.DataFrame({"image_id": ids, "path": [f"{name}.png" for name in ids], "split": "train"})
    index["subset"] = ["segmentation"] + ["grading"] * 4
    index["status"] = ["ok"] * 4 + ["unreadable"]
    write_table(index.reindex(columns=list(INDEX)), tmp_path / "index.parquet", INDEX)
    crops = pd.DataFrame({"image_id": ids, "x0": 11, "y0": -40, "x1": 251, "y1": 200, "status": "ok"})
    write_table(crops.reindex(columns=list(CROPS)), tmp_path / "crops.parquet", CROPS)
    (tmp_path / "detector").mkdir()
    for name in ("config.py", "model.pth"):
        (tmp_path / "detector" / name).write_text("one")
    return tmp_path


def search(root: Path, params: Lesions, **boxes: float) -> pd.DataFrame:
    detect(root, params, LesionBoxes(**boxes))  # type: ignore[arg-type]
    return pd.read_parquet(root / "lesions.parquet")


def detect(root: Path, params: Lesions, cut: LesionBoxes, shard: tuple[int, int] = (0, 1)) -> None:
    paths = (root / "index.parquet", root / "crops.parquet", root / "detector")
    detect_lesions("squares", *paths, cut, params, root / "lesions.parquet", shard)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("tile", [64, 100, None])
def test_boxes_are_in_original_pixels(study: Path, scale: float, tile: int | None) -> None:
    found = search(study, Lesions(batch_size=3, min_score=0.8), scale=scale, tile=tile, overlap=0.45)
    for name, squares in SQUARES.items():
        rows = found[found["image_id"] == name].sort_values("x1")
        assert rows["lesion"].tolist() == [square[4] for square in sorted(squares)]
        places = np.array([square[:4] for square in sorted(squares)], float).reshape(-1, 4)
        np.testing.assert_allclose(rows[["x1", "y1", "x2", "y2"]].to_numpy(float), places, atol=1.01 / scale)
    assert max(ColourDetector.batches) <= 3


def test_the_table_keeps_its_contract(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = search(study, Lesions(min_score=0.05), scale=1.0, tile=64, overlap=0.45)
    assert list(found.columns) == list(LESION_BOXES)
    order = found.sort_values(["image_id", "score"], ascending=[True, False], kind="stable")
    pd.testing.assert_frame_equal(found, order)
    assert set(found["image_id"]) == {"a", "b"}
    assert "z: skipped" in caplog.text
    before = (study / "lesions.parquet").read_bytes()
    search(study, Lesions(min_score=0.05, batch_size=5), scale=1.0, tile=64, overlap=0.45)
    assert (study / "lesions.parquet").read_bytes() == before


def test_an_unreadable_photograph_is_a_row_with_a_reason(study: Path) -> None:
    search(study, SMALL, **CUT)
    searched = pd.read_parquet(study / "searched.parquet").set_index("image_id")
    assert searched["status"].to_dict() == {"a": "ok", "b": "ok", "c": "ok", "z": "unreadable"}
    assert searched["reason"].isna().to_dict() == {"a": True, "b": True, "c": True, "z": False}
    assert "not an image" in searched.loc["z", "reason"]
    assert searched["lesions"].to_dict() == {"a": 3, "b": 1, "c": 0, "z": 0}


def test_the_segmentation_can_find_them(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = study / "model"
    SegmentationNetwork(Segmentation(kinds=["EX", "SE"], tile=64)).save(model)
    searched: list[list[str]] = []

    def one_each(*arguments: Any) -> pd.DataFrame:
        searched.append(arguments[3]["image_id"].tolist())
        one = Found(np.array([[1.0, 2, 3, 4]]), np.array([0.5], np.float32), np.array([2]))
        return pd.concat([found_table(name, one) for name in searched[-1]])

    monkeypatch.setattr("drgrade.segmentation.marks.search_marks", one_each)
    monkeypatch.setattr(predict, "PART", 3)
    paths = (study / "index.parquet", study / "crops.parquet")
    params = Lesions(source="segmentation")
    detect_lesions("squares", *paths, model, LesionBoxes(), params, study / "lesions.parquet")
    assert searched == [["a", "b", "c"], ["z"]]
    assert pd.read_parquet(study / "lesions.parquet")["lesion"].tolist() == ["EX"] * 4
    with pytest.raises(UserError, match=r"segmentation\.json: no such file; run the stage segmentation"):
        detect_lesions(
            "squares", *paths, study / "detector", LesionBoxes(), params, study / "lesions.parquet"
        )


def test_where_nothing_can_be_read_the_search_stops_and_starts_over(study: Path) -> None:
    there = [(path, path.read_bytes()) for path in study.glob("?.png")]
    for path, _ in there:
        path.unlink()
    with pytest.raises(UserError, match=r"a\.png: no such file.*the other 3 photographs"):
        search(study, SMALL, **CUT)
    assert not (study / "lesions.parquet").exists()
    for path, content in there:
        path.write_bytes(content)
    assert set(search(study, SMALL, **CUT)["image_id"]) == {"a", "b"}


def outputs(root: Path) -> dict[str, bytes]:
    """Bytes of the tables; nothing hidden may be left beside them."""
    assert not list(root.glob(".*"))
    return {name: (root / name).read_bytes() for name in ("lesions.parquet", "searched.parquet")}


def test_a_killed_search_goes_on_and_ends_as_if_undisturbed(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "PART", 1)
    search(study, SMALL, **CUT)
    undisturbed, batches = outputs(study), len(ColourDetector.batches)
    for name in undisturbed:
        (study / name).unlink()
    monkeypatch.setattr(ColourDetector, "dies_after", batches - 1)
    with pytest.raises(KeyboardInterrupt):
        search(study, SMALL, **CUT)
    assert not (study / "lesions.parquet").exists()
    monkeypatch.setattr(ColourDetector, "dies_after", None)
    search(study, SMALL, **CUT)
    assert 0 < len(ColourDetector.batches) < batches
    assert outputs(study) == undisturbed


@pytest.mark.parametrize("change", ["params", "cut", "model.pth", "config.py", "index", "crops"])
def test_parts_of_another_search_are_not_used(
    study: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(predict, "PART", 1)
    params, cut = SMALL, LesionBoxes(**CUT)  # type: ignore[arg-type]
    detect(study, params, cut, shard=(0, 2))
    (old,) = (study / ".lesions.parquet.parts").iterdir()
    if change == "params":
        params = params.model_copy(update={"nms_iou": 0.4})
    elif change == "cut":
        cut = cut.model_copy(update={"overlap": 0.3})
    elif change in ("index", "crops"):
        table = pd.read_parquet(study / f"{change}.parquet")
        table[table["image_id"] != "c"].to_parquet(study / f"{change}.parquet")
    else:
        (study / "detector" / change).write_text("two")
    detect(study, params, cut, shard=(0, 2))
    assert ColourDetector.batches
    (new,) = (study / ".lesions.parquet.parts").iterdir()
    assert new != old


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0], []])
def test_shards_in_any_order_make_the_same_tables(
    study: Path, monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    monkeypatch.setattr(predict, "PART", 1)
    search(study, SMALL, **CUT)
    whole = outputs(study)
    for name in whole:
        (study / name).unlink()
    cut = LesionBoxes(**CUT)  # type: ignore[arg-type]
    for number in order:
        detect(study, SMALL, cut, shard=(number, 3))
        assert not (study / "lesions.parquet").exists()
    detect(study, SMALL, cut)
    assert outputs(study) == whole
    assert bool(ColourDetector.batches) == (len(order) < 3)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_there_is_no_such_shard(study: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="shards count from 0"):
        detect(study, SMALL, LesionBoxes(), shard)


def test_without_a_photograph_the_table_is_empty(study: Path) -> None:
    index = pd.read_parquet(study / "index.parquet")
    write_table(index[index["image_id"] == "left_out"], study / "index.parquet", INDEX)
    found = search(study, Lesions())
    assert found.empty
    assert list(found.columns) == list(LESION_BOXES)


def test_seams_are_merged_by_kind_and_the_best_are_kept() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 70, 70], [90, 90, 130, 130]])
    scores = np.array([0.5, 0.9, 0.4, 0.3, 0.2], np.float32)
    labels = np.array([0, 0, 1, 0, 0])
    halves = [Found(boxes[:1], scores[:1], labels[:1]), Found(boxes[1:], scores[1:], labels[1:])]
    merged = merge(halves, (100, 100, 3), Lesions(nms_iou=0.5))
    assert merged.boxes.tolist() == [[1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 70, 70], [90, 90, 100, 100]]
    assert merged.labels.tolist() == [0, 1, 0, 0]
    assert len(merge(halves, (100, 100, 3), Lesions(nms_iou=0.9)).boxes) == 5
    assert merge(halves, (100, 100, 3), Lesions(max_per_image=2)).scores.tolist() == pytest.approx([0.9, 0.4])


def test_photographs_are_read_in_the_background(study: Path) -> None:
    ColourDetector.readers.clear()
    search(study, SMALL, **CUT)
    assert ColourDetector.readers
    assert threading.get_ident() not in ColourDetector.readers

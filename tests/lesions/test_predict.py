import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from drgrade.lesions import predict
from drgrade.lesions.predict import Found, detect_lesions, merge, prefetch
from drgrade.params import LesionBoxes, Lesions
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, write_table

SQUARES = {
    "a": [(40, 40, 60, 56, "EX"), (118, 90, 138, 110, "EX"), (200, 30, 216, 46, "SE")],
    "b": [(150, 100, 170, 120, "SE")],
    "c": [],
}
COLOURS = {"EX": (255, 255, 0), "SE": (0, 255, 255)}


class ColourDetector:
    """Finds the coloured squares exactly; stands in for a trained network."""

    batches: list[int]

    def __init__(self, folder: Path) -> None:
        type(self).batches = []

    def __call__(self, tiles: list[np.ndarray]) -> list[Found]:
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
    return tmp_path


def search(root: Path, params: Lesions, **boxes: float) -> pd.DataFrame:
    cut = LesionBoxes(**boxes)  # type: ignore[arg-type]
    paths = (root / "index.parquet", root / "crops.parquet", root / "detector")
    detect_lesions("squares", *paths, cut, params, root / "lesions.parquet")
    return pd.read_parquet(root / "lesions.parquet")


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


def test_prefetch_keeps_order_reads_ahead_and_passes_errors_on() -> None:
    made: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append((number, threading.get_ident()))
            yield number
        raise OSError("disk gone")

    received: list[int] = []
    with pytest.raises(OSError, match="disk gone"):
        received.extend(prefetch(items(), depth=2))
    assert received == list(range(5))
    assert {thread for _, thread in made} != {threading.get_ident()}

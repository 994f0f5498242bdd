import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.lesions import predict
from drgrade.lesions.found import Found
from drgrade.lesions.measure import measure_detector
from drgrade.params import LesionBoxes, LesionMetrics, Lesions
from drgrade.schema import CROPS, INDEX, LESIONS, write_table

BOXES = LesionBoxes(tile=128, overlap=0.25, scale=1.0, min_area=1, merge_distance=0, min_side=8)
SPLITS = {"a": "train", "b": "val", "c": "val", "d": "test"}
PLACES = {"b": (30, 30), "c": (150, 90), "d": (60, 100)}
SCORES = {"lesion": 200, "false": 250}


@DATASETS.register("blots")
class Blots:
    """Photographs with a mask (EX) each."""

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        return {"EX": root / f"{image_id}_EX.png"}


class BrightnessDetector:
    """Finds every grey square, with its brightness as the score."""

    def __init__(self, folder: Path, min_score: float) -> None: ...

    def prepare(self, tile: np.ndarray) -> np.ndarray:
        return tile

    def detect(self, tiles: list[np.ndarray]) -> list[Found]:
        return [self.find(tile) for tile in tiles]

    def find(self, tile: np.ndarray) -> Found:
        rows = []
        for value in SCORES.values():
            ys, xs = np.nonzero(tile[..., 0] == value)
            if len(xs):
                rows.append(([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], value / 255))
        boxes = np.array([box for box, _ in rows], float).reshape(-1, 4)
        scores = np.array([score for _, score in rows], np.float32)
        return Found(boxes, scores, np.full(len(rows), LESIONS.index("EX")))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photographs: a lesion on each but the first, and on the last a brighter thing that is none."""
    monkeypatch.setenv("DRGRADE_BLOTS_ROOT", str(tmp_path))
    monkeypatch.setattr(predict, "TileDetector", BrightnessDetector)
    for name in SPLITS:
        picture, mask = np.full((160, 220, 3), 90, np.uint8), np.zeros((160, 220), np.uint8)
        if name in PLACES:
            x, y = PLACES[name]
            picture[y : y + 12, x : x + 12] = SCORES["lesion"]
            mask[y : y + 12, x : x + 12] = 255
        if name == "d":
            picture[20:30, 180:190] = SCORES["false"]
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / f"{name}_EX.png")
    index = pd.DataFrame({"image_id": list(SPLITS), "split": list(SPLITS.values())})
    index = index.assign(path=index["image_id"] + ".png", subset="segmentation", status="ok")
    index = index.assign(width=220, height=160)
    write_table(index.reindex(columns=list(INDEX)), tmp_path / "index.parquet", INDEX)
    crops = index[["image_id", "status"]].assign(x0=0, y0=0, x1=220, y1=160)
    write_table(crops.reindex(columns=list(CROPS)), tmp_path / "crops.parquet", CROPS)
    (tmp_path / "detector").mkdir()
    for name in ("config.py", "model.pth"):
        (tmp_path / "detector" / name).write_text("one")
    return tmp_path


def measure(root: Path, rule: str = "iou") -> dict[str, dict[str, dict[str, float]]]:
    paths = (root / "index.parquet", root / "crops.parquet", root / "detector")
    params = LesionMetrics(match=rule, examples=2)  # type: ignore[arg-type]
    measure_detector("blots", *paths, BOXES, Lesions(min_score=0.1), params, root / "out")
    return json.loads((root / "out/metrics.json").read_text())


def test_thresholds_are_chosen_on_validation_and_tried_on_the_test(study: Path) -> None:
    metrics = measure(study)
    val, test = metrics["val"], metrics["test"]
    assert (val["photographs"], test["photographs"]) == (2, 1)
    assert val["EX"]["score"] == test["EX"]["score"] == pytest.approx(200 / 255, abs=1e-5)
    assert val["EX"]["AP50"] == val["EX"]["F1"] == 1
    assert test["EX"]["AP50"] == pytest.approx(0.5)  # the false alarm comes first
    assert (test["EX"]["precision"], test["EX"]["recall"]) == (0.5, 1)
    assert test["EX"]["sensitivity"][:4] == [0, 0, 0, 1]
    assert test["MA"]["AP50"] is test["MA"]["score"] is None
    searched = pd.read_parquet(study / "out/searched.parquet")
    assert set(searched["image_id"]) == {"b", "c", "d"}, "not those it was trained on"
    sheet = Image.open(study / "out/verdicts.png")
    assert min(sheet.size) > 100


def test_without_a_test_photograph(study: Path) -> None:
    (study / "d.png").write_bytes(b"")
    metrics = measure(study, "centre")
    assert metrics["test"] is None
    assert metrics["rule"] == "centre"
    assert (study / "out/verdicts.png").exists()


def test_without_a_validation_photograph(study: Path) -> None:
    for name in "bc":
        (study / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"index\.parquet: no validation photograph with masks can be read"):
        measure(study)

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.params import Segmentation, SegmentationMetrics
from drgrade.schema import CROPS, INDEX, write_table
from drgrade.segmentation.measure import measure_segmentation
from drgrade.segmentation.network import SegmentationNetwork

SPLITS = {"a": "train", "b": "val", "c": "val", "d": "test", "e": "test"}
WIDTH, HEIGHT = 120, 90
BOX = (-10, 0, 110, 90)


@DATASETS.register("stains")
class Stains:
    """Photographs with masks of two kinds, as far as the files exist."""

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        paths = {kind: root / f"{image_id}_{kind}.png" for kind in ("MA", "EX")}
        return {kind: path for kind, path in paths.items() if path.exists()}


class Brightness(nn.Module):
    """Takes red for microaneurysms and blue for exudates; a fold multiplies the probabilities."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.params = Segmentation(
            folds=3 if "fold" in folder.parent.name else None, kinds=["MA", "EX"], tile=64, scale=1
        )
        self.kinds = ["MA", "EX"]
        self.factor = float((folder / "factor").read_text())

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.logit(batch[:, [0, 2]].float() / 255 * self.factor, eps=1e-6)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five photographs, each with a red and a blue lesion; d also has a bright red spot that is none."""
    monkeypatch.setenv("DRGRADE_STAINS_ROOT", str(tmp_path))
    monkeypatch.setattr(
        SegmentationNetwork, "load", classmethod(lambda cls, folder, device="cpu": Brightness(folder))
    )
    for place, name in enumerate(SPLITS):
        image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
        for kind, channel, top in (("MA", 0, 10), ("EX", 2, 50)):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[top : top + 10, 20 + place : 30 + place] = 255
            image[mask > 0, channel] = 200
            Image.fromarray(mask).save(tmp_path / f"{name}_{kind}.png")
        if name == "d":
            image[30:35, 60:80, 0] = 250
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    index = pd.DataFrame({"image_id": list(SPLITS), "split": list(SPLITS.values())})
    index = index.assign(path=index["image_id"] + ".png", subset="segmentation", status="ok")
    write_table(index.reindex(columns=list(INDEX)), tmp_path / "index.parquet", INDEX)
    edges = dict(zip(("x0", "y0", "x1", "y1"), BOX, strict=True))
    crops = index[["image_id", "status"]].assign(**edges)
    write_table(crops.reindex(columns=list(CROPS)), tmp_path / "crops.parquet", CROPS)
    models(tmp_path, {"holdout": 1.0})
    return tmp_path


def models(root: Path, factors: dict[str, float]) -> None:
    for part, factor in factors.items():
        folder = root / "models" / part / "model"
        folder.mkdir(parents=True)
        (folder / "factor").write_text(str(factor))


def measure(root: Path, examples: int = 1) -> dict[str, Any]:
    paths = (root / "index.parquet", root / "crops.parquet", root / "models")
    params = SegmentationMetrics(bootstrap=100, examples=examples)
    measure_segmentation("stains", *paths, params, root / "out")
    return json.loads((root / "out/metrics.json").read_text())


def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "out/photographs.csv").set_index(["split", "image_id", "kind"])


def test_thresholds_are_chosen_on_validation_and_tried_on_the_test(study: Path) -> None:
    metrics = measure(study)
    val, test = metrics["val"], metrics["test"]
    assert metrics["parts"] == ["holdout"]
    assert (val["images"], test["images"]) == (2, 2)
    assert val["MA"]["thresholds"] == test["MA"]["thresholds"]
    assert val["MA"]["thresholds"]["holdout"] == pytest.approx(200 / 255, abs=1e-3)
    for row in (val["MA"], val["EX"], val["mean"], test["EX"]):
        assert {row[name] for name in ("aupr", "auc", "photograph_aupr", "dice", "iou")} == {1}
    # 200 lesion pixels, 100 brighter ones that are none
    assert test["MA"]["aupr"] == pytest.approx(2 / 3, abs=1e-5)
    assert test["MA"]["photograph_aupr"] == pytest.approx((1 / 2 + 1) / 2, abs=1e-5)
    assert test["MA"]["precision"] == pytest.approx(2 / 3, abs=1e-5)
    assert test["MA"]["recall"] == 1
    assert test["MA"]["dice"] == pytest.approx(0.8)
    assert test["mean"]["dice"] == pytest.approx(0.9)
    assert test["MA"]["chance"] == pytest.approx(100 / (WIDTH * HEIGHT), abs=1e-6)
    rows = table(study)
    assert len(rows) == 8, "not those it was trained on"
    assert rows.loc[("test", "d", "MA"), "aupr"] == pytest.approx(0.5, abs=1e-5)
    assert rows.loc[("test", "e", "MA"), "dice"] == 1
    assert set(rows["lesion_pixels"]) == {100}
    assert min(Image.open(study / "out/overlays.png").size) > 100


def test_maps_of_the_test_photographs_are_written(study: Path) -> None:
    measure(study)
    assert {path.name for path in (study / "out/maps").iterdir()} == {"d.npz", "e.npz"}
    with np.load(study / "out/maps/e.npz") as arrays:
        assert arrays["kinds"].tolist() == ["MA", "EX"]
        assert arrays["box"].tolist() == [0, 0, 110, 90]
        image = np.asarray(Image.open(study / "e.png"))[:, :110, [0, 2]]
        assert (arrays["probability"] == image.transpose(2, 0, 1)).all()


def test_without_a_test_photograph_those_for_validation_are_shown(study: Path) -> None:
    index = pd.read_parquet(study / "index.parquet").query("split != 'test'")
    write_table(index, study / "index.parquet", INDEX)
    metrics = measure(study)
    assert metrics["test"] is None
    assert metrics["val"]["MA"]["dice"] == 1
    assert {path.name for path in (study / "out/maps").iterdir()} == {"b.npz", "c.npz"}
    assert (study / "out/overlays.png").exists()


def test_what_cannot_be_read_is_a_row_with_a_reason(study: Path) -> None:
    (study / "b.png").write_bytes(b"")
    (study / "c_EX.png").write_bytes(b"no mask")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(study / "e_MA.png")
    (study / "d_EX.png").unlink()
    metrics = measure(study)
    rows = table(study)
    assert rows.loc[("val", "b", "MA"), ["status", "reason"]].tolist() == ["unreadable", "empty file"]
    assert rows.loc[("val", "c", "EX"), "reason"].startswith(f"{study / 'c_EX.png'}: not a readable")
    assert "7 x 5 pixels, but the photograph has 120 x 90" in rows.loc[("test", "e", "MA"), "reason"]
    assert ("test", "d", "EX") not in rows.index, "not annotated"
    assert rows["status"].value_counts().to_dict() == {"unreadable": 4, "ok": 3}
    assert metrics["val"]["images"] == 1
    assert metrics["val"]["EX"]["aupr"] is metrics["val"]["EX"]["chance"] is None
    assert metrics["test"]["EX"]["thresholds"] == {"holdout": None}
    assert metrics["test"]["EX"]["dice"] is None
    assert metrics["test"]["EX"]["aupr"] == 1
    assert metrics["test"]["MA"]["photographs"] == 1


def test_nothing_to_validate_on(study: Path) -> None:
    for name in "bc":
        (study / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no validation photograph with masks can be read \(b: empty file\)"):
        measure(study)


def test_each_fold_has_its_own_network_and_thresholds(study: Path) -> None:
    index = pd.read_parquet(study / "index.parquet")
    index = index.assign(split="train", patient_id=index["image_id"])
    write_table(index, study / "index.parquet", INDEX)
    (study / "models/holdout/model/factor").unlink()
    (study / "models/holdout/model").rmdir()
    factors = {"fold0": 1.0, "fold1": 0.5, "fold2": 0.25}
    models(study, factors)
    metrics = measure(study)
    assert metrics["parts"] == list(factors)
    assert metrics["test"]["images"] == 5, "each is tested once"
    for part, factor in factors.items():
        threshold = metrics["test"]["EX"]["thresholds"][part]
        assert 60 / 255 * factor < threshold <= 200 / 255 * factor
    assert metrics["test"]["EX"]["dice"] == 1
    assert metrics["test"]["EX"]["photograph_aupr"] == 1
    assert metrics["test"]["EX"]["dice_low"] == 1
    assert len(list((study / "out/maps").iterdir())) == 5


def test_networks_that_are_missing_or_too_many(study: Path) -> None:
    models(study, {"fold0": 1})
    with pytest.raises(UserError, match=r"fold1/model: no trained network"):
        measure(study)
    models(study, {"fold1": 1, "fold2": 1})
    with pytest.raises(UserError, match=r"models/holdout: of a training with other folds; delete"):
        measure(study)
    with pytest.raises(UserError, match=r"nowhere: no trained network"):
        measure_segmentation(
            "stains", study / "index.parquet", study / "crops.parquet", study / "nowhere",
            SegmentationMetrics(), study / "out",
        )  # fmt: skip


def test_a_network_that_diverged(study: Path) -> None:
    (study / "models/holdout/model/factor").write_text("nan")
    with pytest.raises(UserError, match=r"holdout: the network's output for b is not finite"):
        measure(study)

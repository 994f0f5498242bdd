"""The stage on photographs and networks whose maps are known: what it writes, and in which places."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from drgrade.data.demo import GRADED_MASKS
from drgrade.errors import UserError
from drgrade.explain import stage
from drgrade.explain.base import EXPLAINERS
from drgrade.explain.maps import stretched
from drgrade.explain.stage import explain
from drgrade.grading.base import Explainable
from drgrade.images.dataset import CroppedDataset
from drgrade.images.preprocess import Preprocess
from drgrade.images.shards import write_store
from drgrade.params import Crop, Explanation
from drgrade.schema import CROPS, INDEX, write_table

NAMES = ["graded.npy", "graded.png", "lesions.npy", "lesions.png"]
WIDTH, HEIGHT = 96, 64
BOX = (16, 0, 80, 64)
BLOB = (56, 24)
"""Middle (x, y) of the bright 16 x 16 pixels of the photograph, and of its lesion."""


@pytest.fixture
def demo(tmp_path, monkeypatch) -> CroppedDataset:
    """Two grey photographs with a bright blob, of which the first has a lesion mask."""
    monkeypatch.setenv("DRGRADE_DEMO_ROOT", str(tmp_path / "raw"))
    photograph = np.full((HEIGHT, WIDTH, 3), 64, np.uint8)
    photograph[16:32, 48:64] = 255
    lesion = (photograph[..., 0] == 255) * np.uint8(255)
    (tmp_path / "raw" / GRADED_MASKS).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "raw" / GRADED_MASKS / "lesions_EX.tif"), lesion)
    names = ["lesions", "graded"]
    for name in names:
        cv2.imwrite(str(tmp_path / "raw" / f"{name}.png"), photograph)
    data = CroppedDataset("demo", tmp_path / "results/demo")
    index = pd.DataFrame({"image_id": names, "subset": ["segmentation", "grading"], "status": "ok"})
    index = index.assign(path=[f"{name}.png" for name in names], split="test", grade=[None, 2])
    write_table(index.reindex(columns=list(INDEX)), data.index_file, INDEX)
    x0, y0, x1, y1 = BOX
    crops = pd.DataFrame({"image_id": names, "row": [0, 1], "status": "ok"})
    crops = crops.assign(x0=x0, y0=y0, x1=x1, y1=y1)
    write_table(crops.reindex(columns=list(CROPS)), data.crops_file, CROPS)
    write_store(np.stack([photograph[y0:y1, x0:x1]] * 2), data.store_file)
    return data


@pytest.fixture
def run(demo, tmp_path, monkeypatch):
    """Runs the stage on networks, (network, input size); returns its folder."""

    def explained(*networks, **params):
        preprocess = {size: Preprocess(Crop(), size, (0, 0, 0), (1, 1, 1)) for _, size in networks}
        found = [Explainable(network, preprocess[size]) for network, size in networks]
        monkeypatch.setattr(stage, "network_of", found.__getitem__)
        out = tmp_path / "explain"
        explain(Explanation(**params), graded=demo, masked=demo, models=range(len(networks)), out=out)
        return out

    return explained


def inside() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x0, y0, x1, y1 = BOX
    mask[y0:y1, x0:x1] = True
    return mask


def values(out) -> np.ndarray:
    return np.load(out / "maps/graded.npy")


def heat(out) -> np.ndarray:
    return cv2.imread(str(out / "maps/graded.png"), cv2.IMREAD_UNCHANGED)


def test_maps_of_several_networks_are_averaged_in_grade_units(blocks, run):
    out = run((blocks(weight=0, bias=3), 32), (blocks(weight=0, bias=0.5), 64), method="ram")
    np.testing.assert_allclose(values(out), np.where(inside(), 1.75, 0), atol=1e-6)
    assert values(out).dtype == np.float32
    np.testing.assert_array_equal(heat(out), np.where(inside(), round(255 * 1.75 / 4), 0))


def test_values_beyond_the_grades_are_kept_and_drawn_at_the_ends_of_the_scale(blocks, run):
    out = run((blocks(weight=0, bias=9), 32), method="ram")
    assert values(out).max() == pytest.approx(9)
    assert heat(out).max() == 255
    out = run((blocks(weight=0, bias=-2), 32), method="ram")
    assert values(out).min() == pytest.approx(-2)
    assert heat(out).max() == 0


def test_each_network_has_its_own_margin(blocks, run):
    out = run((blocks(weight=0, bias=4, cut=16), 64), (blocks(weight=0, bias=2), 32), method="ram")
    expected = np.where(inside(), 1.0, 0)
    expected[16:48, 32:64] = 3
    edge = cv2.dilate(cv2.Canny((expected * 80).astype(np.uint8), 10, 20), np.ones((5, 5))) > 0
    np.testing.assert_allclose(values(out)[~edge], expected[~edge], atol=1e-5)


@pytest.mark.parametrize("scale", ["common", "each"])
def test_the_blob_of_the_photograph_is_found_and_scored(blocks, run, scale):
    out = run((blocks(weight=4), 32), (blocks(weight=4, cut=8), 64), method="ram", scale=scale)
    rows, columns = np.nonzero(heat(out) > 0.99 * heat(out).max())
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(BLOB, abs=3)
    written = json.loads((out / "scores.json").read_text())
    assert written["n"] == 1
    assert written["photographs"]["lesions"]["pointing"] == 1
    assert written["mean"]["auc"] > 0.95
    assert written["mean"]["energy"] > 2 * written["mean"]["random_energy"]


def test_insertion_and_deletion_are_measured_on_test_photographs_first(blocks, run):
    out = run((blocks(weight=4), 32), (blocks(weight=4), 64), method="cam", faithfulness=1)
    written = json.loads((out / "scores.json").read_text())
    assert written["photographs"].keys() == {"lesions"}
    assert (written["n"], written["n_faithfulness"]) == (1, 1)
    found = written["photographs"]["lesions"]
    assert found["insertion"] > found["fov_insertion"] > found["deletion"]
    out = run((blocks(weight=4), 32), method="cam", faithfulness=5)
    written = json.loads((out / "scores.json").read_text())
    assert (written["n"], written["n_faithfulness"]) == (1, 2)
    assert "auc" not in written["photographs"]["graded"]
    pair = [written["photographs"][name]["insertion"] for name in ("lesions", "graded")]
    assert written["mean"]["insertion"] == pytest.approx(np.mean(pair), abs=1e-6)
    out = run((blocks(weight=4), 32), method="cam", faithfulness=0)
    assert "insertion" not in json.loads((out / "scores.json").read_text())["mean"]


def test_photographs_of_the_test_split_come_first():
    lesions = pd.DataFrame({"image_id": ["a", "b", "c"], "split": ["test", "val", None]}).astype("string")
    test = pd.DataFrame({"image_id": ["d"], "split": ["test"]})
    assert [str(name) for name in stage.test_split_first(lesions, test)] == ["a", "d", "b", "c"]


class Heads(torch.nn.Module):
    """Stands for a transformer with two heads, which look at its left and its right half."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(1, 2, 3))


def test_maps_of_heads_are_written_and_drawn_beside_their_mean(run, monkeypatch):
    weights = np.array([[[1, 0], [1, 0]], [[0, 0.5], [0, 0.5]]], np.float32)
    method = EXPLAINERS.get("attention")
    monkeypatch.setattr(method, "heads", lambda _, __, batch: np.stack([weights] * len(batch)))
    out = run((Heads(), 32), method="attention")
    heads = [f"{name}_head{k}.png" for name in ("graded", "lesions") for k in (0, 1)]
    assert sorted(path.name for path in (out / "maps").iterdir()) == sorted([*NAMES, *heads])
    left, right = (cv2.imread(str(out / f"maps/graded_head{k}.png"), cv2.IMREAD_UNCHANGED) for k in (0, 1))
    assert (left[:, 16:30] > 250).all()  # in the crop's left quarter
    assert not left[:, 66:].any()
    assert (right[:, 66:80] > 250).all()  # on its own scale
    assert not right[:, :30].any()
    assert (heat(out)[:, 66:80] < 140).all()  # the mean has one scale
    # two photographs, each with a panel of the mean and one of the heads
    assert cv2.imread(str(out / "heat_maps.png")).shape == (488 + 8, 4 * 488 + 8, 3)


class Bright:
    """A lesion method that shows the brightness, and knows one photograph of the two."""

    def __init__(self, results) -> None:
        self.results = results

    def explains(self, source):
        assert (self.results.boxes, self.results.masked) == ({"demo": "folder"}, source)
        return {"lesions"}

    def heat(self, photograph):
        return photograph.image[..., 0].astype(np.float32) / 255


def test_lesion_methods_need_no_model(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(EXPLAINERS._parts, "lesion_boxes", Bright)
    out, params = tmp_path / "explain", Explanation(method="lesion_boxes")
    explain(params, graded=demo, masked=demo, boxes={"demo": "folder"}, out=out)
    assert sorted(path.name for path in (out / "maps").iterdir()) == ["lesions.npy", "lesions.png"]
    expected = np.full((HEIGHT, WIDTH), 64)
    expected[16:32, 48:64] = 255
    np.testing.assert_array_equal(cv2.imread(str(out / "maps/lesions.png"), cv2.IMREAD_UNCHANGED), expected)
    written = json.loads((out / "scores.json").read_text())
    assert written["mean"]["auc"] == 1
    assert written["n_faithfulness"] == 0


def test_a_missing_model_is_named(demo, tmp_path):
    with pytest.raises(UserError, match=r"^--model: needed by the method cam"):
        explain(Explanation(), graded=demo, masked=demo, out=tmp_path)


class LesionCells(torch.nn.Module):
    """Its lesion network sees the brightness of 16 x 16 cells, whatever the input size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))

    def lesion_map(self, images: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 16).squeeze(1)


def test_lesion_maps_of_any_resolution_land_in_their_place_and_keep_their_scale(run):
    out = run((LesionCells(), 32), (LesionCells(), 64), method="lesion_maps")
    middle = heat(out)[24 - 4 : 24 + 4, 56 - 4 : 56 + 4]
    np.testing.assert_array_equal(middle, 128)  # half of 255, not stretched
    away = heat(out)[inside() & (cv2.dilate((heat(out) > 100).astype(np.uint8), np.ones((9, 9))) == 0)]
    np.testing.assert_allclose(away, 255 * 0.5 * 64 / 255, atol=1)
    assert not heat(out)[~inside()].any()
    stored = np.load(out / "maps/graded.npy")
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored.astype(float) * 255, heat(out), atol=0.6)
    assert json.loads((out / "scores.json").read_text())["photographs"]["lesions"]["pointing"] == 1


def test_the_published_scale_hides_the_grade(blocks, run):
    """Each map is stretched to 0-1 before averaging, so its level does not count; there is no unit then."""
    low = heat(run((blocks(weight=0.01), 32), (blocks(weight=0.01, bias=3), 32), method="ram", scale="each"))
    out = run((blocks(weight=4), 32), (blocks(weight=0.1, bias=1), 32), method="ram", scale="each")
    np.testing.assert_allclose(heat(out).astype(int), low.astype(int), atol=1)
    assert heat(out).max() > 200  # resampling takes the tip of the blob
    assert [path.name for path in sorted((out / "maps").iterdir())] == NAMES


def test_files_of_an_earlier_run_are_removed_and_sheets_differ(blocks, run):
    out = run((blocks(weight=4), 32), method="ram")
    assert len(list((out / "maps").iterdir())) == 4
    # 480-pixel cells: two photographs beside their maps, then the legend
    assert cv2.imread(str(out / "heat_maps.png")).shape == (2 * 488 + 8, 4 * 488 + 8, 3)
    (out / "maps/old.png").touch()
    run((blocks(weight=4), 32), method="cam")
    assert sorted(path.name for path in (out / "maps").iterdir()) == NAMES
    assert values(out).max() <= 1
    assert cv2.imread(str(out / "heat_maps.png")).shape == (488 + 8, 2 * 488 + 8, 3)


def test_stretched():
    values = np.array([[[1, 2], [3, 5]], [[-4, 0], [0, 4]], [[7, 7], [7, 7]]], np.float32)
    expected = [[[0, 0.25], [0.5, 1]], [[0, 0.5], [0.5, 1]], [[0, 0], [0, 0]]]
    np.testing.assert_allclose(stretched(values), expected)

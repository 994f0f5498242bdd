import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from faster_coco_eval.core import mask as mask_tools
from PIL import Image

from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.lesions.coco import Coco, make_lesion_boxes, outlined, rectangles, visible_boxes
from drgrade.lesions.masks import mask_lesions
from drgrade.lesions.tiles import Tile
from drgrade.params import LesionBoxes
from drgrade.schema import CROPS, INDEX, write_table

SIZE = (150, 200)  # height, width
TILES = LesionBoxes(tile=64, overlap=0.25, scale=1.0, min_area=1, merge_distance=0, min_side=1)
LESIONS = {
    "a": {"MA": [(30, 30, 34, 34), (120, 90, 123, 92)], "EX": [(60, 50, 72, 60)]},
    "b": {"HE": [(100, 70, 130, 95)]},
    "c": {"SE": [(40, 40, 60, 60)]},
}
SPLITS = {"a": "train", "b": "val", "c": "test"}


@DATASETS.register("toy")
class Toy:
    """Photographs with lesions at known places."""

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        return {path.stem.split("_")[1]: path for path in root.glob(f"{image_id}_*.png")}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three photographs, their masks, index and crops."""
    monkeypatch.setenv("DRGRADE_TOY_ROOT", str(tmp_path / "raw"))
    (tmp_path / "raw").mkdir()
    for name, lesions in LESIONS.items():
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / f"raw/{name}.jpg")
        for lesion, boxes in lesions.items():
            mask = np.zeros(SIZE, np.uint8)
            for x1, y1, x2, y2 in boxes:
                mask[y1:y2, x1:x2] = 255
            Image.fromarray(mask).save(tmp_path / f"raw/{name}_{lesion}.png")
    write_tables(tmp_path)
    return tmp_path


def write_tables(root: Path) -> None:
    index = pd.DataFrame({"image_id": list(LESIONS)})
    index["path"] = index["image_id"] + ".jpg"
    index["split"] = index["image_id"].map(SPLITS)
    for column in INDEX:
        if column not in index:
            index[column] = {"subset": "segmentation", "status": "ok", "reason": "", "sha256": ""}.get(column)
    write_table(index, root / "index.parquet", INDEX)
    crops = pd.DataFrame(
        {"image_id": list(LESIONS), "row": [0, 1, 2], "x0": 20, "y0": -10, "x1": 190, "y1": 160}
    )
    write_table(crops.assign(scale=1.0, rule="disc", status="ok", reason=""), root / "crops.parquet", CROPS)


def make(root: Path, params: LesionBoxes = TILES) -> Path:
    make_lesion_boxes("toy", root / "index.parquet", root / "crops.parquet", params, root / "boxes")
    return root / "boxes"


def test_boxes_return_to_the_photograph(toy: Path) -> None:
    """COCO round trip: every lesion is found again at its place, as its kind, in an image that exists."""
    out = make(toy)
    for split, name in (("train", "a"), ("val", "b")):
        coco = json.loads((out / f"{split}.json").read_text())
        assert [category["name"] for category in coco["categories"]] == ["MA", "HE", "EX", "SE"]
        assert [category["id"] for category in coco["categories"]] == [1, 2, 3, 4]
        kinds = {category["id"]: category["name"] for category in coco["categories"]}
        images = {image["id"]: image for image in coco["images"]}
        whole = set()
        for row in coco["annotations"]:
            image = images[row["image_id"]]
            assert cv2.imread(str(out / "images" / image["file_name"])).shape == (64, 64, 3)
            x, y, width, height = row["bbox"]
            assert row["area"] == pytest.approx(width * height)
            assert 0 <= x < x + width <= image["width"]
            assert 0 <= y < y + height <= image["height"]
            left, top = (int(part[1:]) for part in image["file_name"][:-4].split("__")[1].split("_"))
            place = (x + left + 20, y + top, x + left + width + 20, y + top + height)
            inside = [box for box in LESIONS[name][kinds[row["category_id"]]] if contains(box, place)]
            assert len(inside) == 1
            assert width * height >= 0.4 * area(inside[0])
            whole |= {(kinds[row["category_id"]], inside[0])} if area(inside[0]) == row["area"] else set()
        assert whole == {(kind, box) for kind, boxes in LESIONS[name].items() for box in boxes}


def area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def contains(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def test_splits_identifiers_and_bytes_repeat(toy: Path) -> None:
    out = make(toy)
    train = json.loads((out / "train.json").read_text())
    assert [image["id"] for image in train["images"]] == list(range(1, len(train["images"]) + 1))
    assert [row["id"] for row in train["annotations"]] == list(range(1, len(train["annotations"]) + 1))
    assert not list((out / "images").glob("c__*")), "the test split stays out"
    before = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    (out / "images" / "left_over.jpg").touch()
    make(toy)
    assert {path.name: path.read_bytes() for path in out.rglob("*.*")} == before


def test_whole_photographs(toy: Path) -> None:
    out = make(toy, TILES.model_copy(update={"tile": None, "scale": 0.5}))
    (image,) = json.loads((out / "train.json").read_text())["images"]
    assert (image["width"], image["height"]) == (85, 75)  # half of the crop box inside the photograph


def decoded(row: dict[str, Any]) -> np.ndarray:
    """An annotation's mask as COCO's own tools read it."""
    segmentation = row["segmentation"]
    return mask_tools.decode(mask_tools.frPyObjects(segmentation, *segmentation["size"])).astype(bool)


@pytest.mark.parametrize(("tile", "scale"), [(64, 1.0), (64, 0.5), (None, 0.4)])
def test_segmentations_are_the_masks(toy: Path, tile: int | None, scale: float) -> None:
    """Each annotation's run lengths show the lesion's own pixels; together they cover the tile's mask."""
    out = make(toy, TILES.model_copy(update={"tile": tile, "scale": scale}))
    coco = json.loads((out / "train.json").read_text())
    assert coco["annotations"]
    for row in coco["annotations"]:
        mask = decoded(row)
        assert row["area"] == mask.sum() > 0
        ys, xs = np.nonzero(mask)
        x, y, width, height = row["bbox"]
        assert x - 1 <= xs.min() <= xs.max() + 1 <= x + width + 1
        assert y - 1 <= ys.min() <= ys.max() + 1 <= y + height + 1
        assert row["area"] == pytest.approx(width * height, abs=width + height + 1)  # they are rectangles


def test_a_segmentation_leaves_out_its_neighbour(tmp_path: Path) -> None:
    """Two lesions whose boxes overlap keep their pixels apart; areas are theirs, not their boxes'."""
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2] = mask[11, 2:12] = True  # an L around
    mask[3:8, 6:9] = True
    boxes, labels = mask_lesions(mask)
    seen = outlined(boxes.astype(float), np.arange(2), labels)
    assert boxes.tolist() == [[2, 2, 12, 12], [6, 3, 9, 8]]
    assert seen.areas == [19, 15]
    for row, segmentation in enumerate(seen.segmentations, start=1):
        assert (decoded({"segmentation": segmentation}) == (labels == row)).all()


def test_published_segmentations_are_rectangles(toy: Path) -> None:
    """Specification 4.3: 16 numbers, corners and middles of the sides; an area of (w + 1)(h + 1)."""
    out = make(toy, TILES.model_copy(update={"mode": "parity", "tile": None}))
    (row,) = json.loads((out / "val.json").read_text())["annotations"]
    x, y, width, height = row["bbox"]
    assert row["area"] == (width + 1) * (height + 1)
    (polygon,) = row["segmentation"]
    points = {tuple(point) for point in np.array(polygon).reshape(8, 2).tolist()}
    sides = itertools.product((x, x + width / 2, x + width), (y, y + height / 2, y + height))
    assert points == set(sides) - {(x + width / 2, y + height / 2)}


def test_published_boxes_are_grown(toy: Path) -> None:
    out = make(toy, TILES.model_copy(update={"mode": "parity", "tile": None}))
    coco = json.loads((out / "val.json").read_text())
    assert [row["bbox"] for row in coco["annotations"]] == [[100 - 1 - 20, 70 - 1, 30 + 1, 25 + 1]]


def test_a_mask_of_another_size_is_named(toy: Path) -> None:
    Image.new("L", (10, 10)).save(toy / "raw/a_MA.png")
    with pytest.raises(UserError, match=r"a_MA\.png: 10 x 10 pixels, but its photograph has 200 x 150"):
        make(toy)


def test_without_validation_photographs(toy: Path) -> None:
    index = pd.read_parquet(toy / "index.parquet")
    write_table(index[index["split"] != "val"], toy / "index.parquet", INDEX)
    with pytest.raises(UserError, match=r"index\.parquet: no usable photograph .* in split val"):
        make(toy)


def test_an_unreadable_photograph_is_passed_over(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = pd.read_parquet(toy / "index.parquet")
    extra = index[index["image_id"] == "a"].assign(image_id="aa", path="broken.jpg")
    write_table(pd.concat([index, extra]), toy / "index.parquet", INDEX)
    crops = pd.read_parquet(toy / "crops.parquet")
    row = crops[crops["image_id"] == "a"].assign(image_id="aa")
    write_table(pd.concat([crops, row]), toy / "crops.parquet", CROPS)
    (toy / "raw/broken.jpg").write_bytes(b"")
    make(toy)
    assert "aa: skipped" in caplog.text


def test_visible_share_and_growth() -> None:
    tile = Tile(np.zeros((64, 64, 3), np.uint8), (0, 0), (1.0, 1.0), (0, 0))
    boxes = np.array([[-6.0, 0, 4, 10], [-5.9, 0, 4.1, 10], [60.2, 60.2, 70.2, 70.2], [20, 20, 23, 21]])
    np.testing.assert_allclose(
        visible_boxes(boxes, tile, min_side=8)[0], [[0, 0, 4, 10], [0, 0, 4.1, 10], [17.5, 16.5, 25.5, 24.5]]
    )
    shown, rows = visible_boxes(boxes[1:], tile, min_side=1)
    np.testing.assert_allclose(shown[1:], boxes[3:])
    assert rows.tolist() == [0, 2]


def test_category_order_of_annotations() -> None:
    coco = Coco()
    seen = rectangles(np.array([[0.0, 0, 2, 2]]))
    tile = Tile(np.zeros((8, 8, 3), np.uint8), (0, 0), (1, 1), (0, 0))
    coco.add("t.jpg", b"abc", tile, {"SE": seen, "MA": seen})
    assert [row["category_id"] for row in coco.annotations] == [1, 4]
    # of "abc", FIPS 180-2 appendix B.1
    assert coco.images[0]["sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")

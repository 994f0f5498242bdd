from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from drgrade.lesions.found import PARTS, Found
from drgrade.params import LesionBoxes, Lesions, Segmentation
from drgrade.schema import LESIONS
from drgrade.segmentation import marks as module
from drgrade.segmentation.marks import marks, search_marks
from drgrade.segmentation.network import SegmentationNetwork

ALL = Lesions(source="segmentation", mark_threshold=0.5, min_mark=1, min_score=0.0)


def found(maps: np.ndarray, kinds: Sequence[str] = ("MA",), **changes: float) -> Found:
    high, wide = maps.shape[1:]
    return marks(maps, kinds, (0, 0, wide, high), (high, wide), ALL.model_copy(update=changes))


def test_marks_of_a_drawn_map() -> None:
    maps = np.zeros((2, 8, 10), np.float32)
    maps[0, 1:3, 2:5] = 0.6
    maps[0, 2, 3] = 0.9
    maps[0, 3, 5] = 0.7  # touches by a corner
    maps[0, 6, 8] = 0.5  # not above the threshold
    maps[1, 7, 0] = 0.8
    some = found(maps, ("HE", "SE"))
    assert some.boxes.tolist() == [[2, 1, 6, 4], [0, 7, 1, 8]]
    np.testing.assert_allclose(some.scores, [0.9, 0.8])
    assert [LESIONS[label] for label in some.labels] == ["HE", "SE"]
    assert found(maps, ("HE", "SE"), min_mark=2).boxes.tolist() == [[2, 1, 6, 4]]
    assert found(maps, ("HE", "SE"), min_score=0.85).boxes.tolist() == [[2, 1, 6, 4]]
    assert found(maps, ("HE", "SE"), max_per_image=1).boxes.tolist() == [[2, 1, 6, 4]]
    assert found(np.zeros((1, 3, 3), np.float32)).boxes.shape == (0, 4)


def test_boxes_are_in_pixels_of_the_photograph_and_of_the_least_side() -> None:
    maps = np.zeros((1, 10, 20), np.float32)
    maps[0, 0, 0] = maps[0, 4:6, 10:14] = 1.0
    box, shape = (100, 50, 140, 70), (70, 400)  # two pixels of the photograph to one of the map
    some = marks(maps, ["EX"], box, shape, ALL)
    assert some.boxes.tolist() == [[100, 50, 102, 52], [120, 58, 128, 62]]
    grown = marks(maps, ["EX"], box, shape, ALL, min_side=6)
    assert grown.boxes.tolist() == [[98, 48, 104, 54], [120, 57, 128, 63]]
    edge = marks(maps, ["EX"], (0, 50, 40, 70), shape, ALL, min_side=6)
    assert edge.boxes[0].tolist() == [0, 48, 4, 54]


@settings(max_examples=40, deadline=None)
@given(
    maps=arrays(
        np.float32, (2, 9, 7), elements=st.sampled_from([np.float32(x) for x in (0, 0.2, 0.55, 0.7, 1)])
    )
)
def test_each_connected_mark_gives_one_box_with_its_highest_probability(maps: np.ndarray) -> None:
    expected = []
    for label, chance in zip((2, 0), maps, strict=True):
        number, _ = ndimage.label(chance > 0.5, np.ones((3, 3)))
        for place, (rows, columns) in enumerate(ndimage.find_objects(number), 1):
            box = (columns.start, rows.start, columns.stop, rows.stop)
            expected.append((label, *box, float(chance[number == place].max())))
    some = found(maps, (LESIONS[2], LESIONS[0]))
    rows = zip(some.labels.tolist(), *some.boxes.T.tolist(), some.scores.tolist(), strict=True)
    assert sorted(rows) == sorted(expected)
    assert (np.diff(some.scores) <= 0).all()


def test_a_search_finds_what_the_network_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[20:30, 40:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = pd.DataFrame({"image_id": ["a", "b"], "path": ["a.png", "b.png"]})
    rows = rows.assign(x0=10, y0=-5, x1=90, y1=65)

    def bright(_: object, image: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
        inside = image[max(box[1], 0) : box[3], box[0] : box[2]]
        return (inside[None, ::2, ::2, 0] / 255).astype(np.float32)

    monkeypatch.setattr(module, "probabilities", bright)
    network = SegmentationNetwork(Segmentation(kinds=["HE"]))
    table = search_marks(network, LesionBoxes(min_side=8, scale=0.5), ALL, rows, tmp_path).set_index(
        "image_id"
    )
    assert set(table.columns) | {"image_id"} == set(PARTS)
    assert table.loc["a", ["x1", "y1", "x2", "y2", "score", "lesion"]].tolist() == [40, 17, 60, 33, 1, "HE"]
    assert "not an image" in table.loc["b", "reason"]

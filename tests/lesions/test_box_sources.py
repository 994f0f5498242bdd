import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.images.geometry import CropGeometry
from drgrade.lesions.box_sources import at_random, random_boxes

SIZE = 128


def corners(boxes: np.ndarray) -> np.ndarray:
    """(n, 4, 2)."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([np.stack([x, y], axis=1) for x in (x1, x2) for y in (y1, y2)], axis=1)


side = st.floats(1, 60)


@given(
    st.lists(st.tuples(side, side), min_size=1, max_size=20),
    st.floats(0, 20),
    st.floats(0, 20),
    st.integers(0, 9),
)
def test_random_boxes_lie_wholly_on_the_retina(
    sides: list[tuple[float, float]], top: float, left: float, seed: int
) -> None:
    """Boxes of up to 60 px fit a disc of radius 60 that is cut at 20 px."""
    frame = np.array([left, top, SIZE, SIZE - top])
    boxes = random_boxes(np.array(sides), frame, SIZE / 2, 60, np.random.default_rng(seed))
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], sides, atol=1e-9)
    assert (np.linalg.norm(corners(boxes) - SIZE / 2, axis=2) <= 60 + 1e-9).all()
    assert (boxes[:, :2] >= frame[:2] - 1e-9).all()
    assert (boxes[:, 2:] <= frame[2:] + 1e-9).all()


def test_random_boxes_are_spread_evenly() -> None:
    """Small boxes fill the disc: a quarter of them within half its radius, half of them above its middle."""
    boxes = random_boxes(
        np.full((4000, 2), 0.01), np.array([0, 0, SIZE, SIZE]), SIZE / 2, 60, np.random.default_rng(0)
    )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - SIZE / 2
    assert (np.linalg.norm(centres, axis=1) < 30).mean() == pytest.approx(0.25, abs=0.03)
    assert (centres[:, 1] < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (np.abs(centres).max(axis=1) < 60 / np.sqrt(2)).mean() == pytest.approx(2 / np.pi, abs=0.03)


def test_a_box_that_fits_nowhere_lies_in_the_middle() -> None:
    boxes = random_boxes(
        np.array([[100.0, 100], [4, 4]]), np.array([0, 0, SIZE, SIZE]), SIZE / 2, 60, np.random.default_rng(0)
    )
    assert boxes[0].tolist() == [14, 14, 114, 114]
    assert boxes[1].tolist() != [62, 62, 66, 66]


def test_random_boxes_stay_where_the_photograph_is() -> None:
    """A photograph of 200 x 120 whose crop of 200 x 200 reaches 40 pixels above and below it."""
    places = {"a": CropGeometry(0, -40, 200, 160, SIZE)}
    photographs = pd.DataFrame({"image_id": ["a"], "width": [200], "height": [120]})
    boxes = pd.DataFrame({"image_id": ["a"] * 500, "x1": 60.0, "y1": 60.0, "x2": 68.0, "y2": 64.0})
    moved = at_random(boxes.assign(score=0.9, lesion="MA"), photographs, places, 1.25, 1)
    assert (moved["score"] == 0.9).all()
    assert moved["y1"].min() == pytest.approx(40 * SIZE / 200, abs=2)
    assert moved["y1"].min() >= 40 * SIZE / 200
    assert moved["y2"].max() <= 160 * SIZE / 200
    assert moved["x1"].min() > 1.25
    assert moved["x2"].max() < SIZE - 1.25

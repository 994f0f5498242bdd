import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.images.geometry import CropGeometry

corners = st.integers(-3000, 6000)
sides = st.integers(1, 6000)
sizes = st.integers(1, 2048)


@st.composite
def geometries(draw):
    x0, y0 = draw(corners), draw(corners)
    return CropGeometry(x0, y0, x0 + draw(sides), y0 + draw(sides), draw(sizes))


points = st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), max_size=20)


@given(geometries(), points)
def test_there_and_back_is_the_identity(geometry, where):
    where = np.array(where, dtype=float).reshape(-1, 2)
    np.testing.assert_allclose(geometry.to_original(geometry.to_crop(where)), where, atol=1e-8)
    np.testing.assert_allclose(geometry.to_crop(geometry.to_original(where)), where, atol=1e-8)


@given(geometries())
def test_box_fills_the_crop_exactly(geometry):
    x0, y0, x1, y1 = geometry.box
    size = geometry.size
    assert geometry.boxes_to_crop([[x0, y0, x1, y1]]).tolist() == [[0, 0, size, size]]
    assert geometry.boxes_to_original([[0, 0, size, size]]).tolist() == [[x0, y0, x1, y1]]


@given(geometries(), st.integers(0, 2047), st.integers(0, 2047))
def test_every_crop_pixel_comes_back_exactly(geometry, column, row):
    there = geometry.to_original([[column + 0.5, row + 0.5]])
    assert np.floor(geometry.to_crop(there)).tolist() == [[column, row]]


@given(geometries(), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1, 100), st.floats(1, 100))
def test_boxes_scale_like_their_sides(geometry, x, y, width, height):
    x1, y1, x2, y2 = geometry.boxes_to_crop([[x, y, x + width, y + height]])[0]
    assert x2 - x1 == pytest.approx(width * geometry.scale_x, abs=1e-6)
    assert y2 - y1 == pytest.approx(height * geometry.scale_y, abs=1e-6)


def test_stretched_crop_of_the_published_example():
    # spec of lesion-contrastive learning, section 6: x = 0.9 W of a 1.2:1 crop belongs at 461 of 512
    geometry = CropGeometry(149, 0, 1352, 1000, 512)
    x, y = geometry.to_crop([[149 + 0.9 * 1203, 500]])[0]
    assert (round(x), y) == (461, 256)
    assert geometry.scale == pytest.approx((512 / 1203 * 512 / 1000) ** 0.5)


def test_from_row_of_the_table():
    table = pd.DataFrame({"x0": [-12], "y0": [3], "x1": [88], "y1": [103]}).astype("Int32")
    geometry = CropGeometry.from_row(table.iloc[0], 50)
    assert geometry == CropGeometry(-12, 3, 88, 103, 50)
    assert geometry.scale == geometry.scale_x == geometry.scale_y == 0.5


def test_no_points_is_fine_and_wrong_shapes_are_not():
    geometry = CropGeometry(0, 0, 10, 10, 5)
    assert geometry.to_crop([]).shape == (0, 2)
    assert geometry.boxes_to_original(np.empty((0, 4))).shape == (0, 4)
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        geometry.boxes_to_crop([[1, 2]])
    with pytest.raises(ValueError, match="empty"):
        CropGeometry(5, 0, 5, 10, 5)

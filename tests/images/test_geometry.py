from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.images.geometry import CropGeometry, boxes_to_crops

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


def any_overlap(mask, geometry):
    """The crop's mask by its definition, in exact fractions: every set pixel against every crop pixel."""
    size = geometry.size
    across, down = Fraction(geometry.x1 - geometry.x0, size), Fraction(geometry.y1 - geometry.y0, size)
    crop = np.zeros((size, size), bool)
    for row, column in np.argwhere(mask):
        for y, x in np.ndindex(size, size):
            top, left = geometry.y0 + y * down, geometry.x0 + x * across
            if top < row + 1 and top + down > row and left < column + 1 and left + across > column:
                crop[y, x] = True
    return crop


@st.composite
def small_cases(draw):
    """A mask of a few pixels, and a crop that may be smaller, larger, beside it or stretched."""
    width, height = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    mask = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((height, width)) < 0.15
    x0, y0 = draw(st.integers(-8, 12)), draw(st.integers(-8, 12))
    x1, y1 = x0 + draw(st.integers(1, 20)), y0 + draw(st.integers(1, 20))
    return mask, CropGeometry(x0, y0, x1, y1, draw(st.integers(1, 12)))


@settings(deadline=None)
@given(small_cases())
def test_mask_in_the_crop_is_any_overlap(case):
    mask, geometry = case
    np.testing.assert_array_equal(geometry.mask_to_crop(mask), any_overlap(mask, geometry))


@settings(deadline=None)
@given(small_cases())
def test_mask_of_the_crop_in_the_photograph_is_any_overlap(case):
    mask, geometry = case
    height, width = mask.shape
    crop = np.random.default_rng(mask.sum()).random((geometry.size, geometry.size)) < 0.15
    back = geometry.mask_to_original(crop, width, height)
    for row, column in np.ndindex(height, width):
        one = np.zeros_like(mask)
        one[row, column] = True
        assert back[row, column] == (any_overlap(one, geometry) & crop).any()


@settings(deadline=None)
@given(small_cases())
def test_mask_there_and_back_covers_what_was_set(case):
    mask, geometry = case
    height, width = mask.shape
    rows, columns = np.indices(mask.shape)
    seen = (rows >= geometry.y0) & (rows < geometry.y1) & (columns >= geometry.x0) & (columns < geometry.x1)
    back = geometry.mask_to_original(geometry.mask_to_crop(mask), width, height)
    assert (back >= (mask & seen)).all()
    assert not (back & ~seen).any()


@st.composite
def boxed_geometries(draw):
    """A crop inside a photograph of 300 x 200, and a box inside the crop."""
    x0, y0 = draw(st.integers(0, 250)), draw(st.integers(0, 150))
    x1, y1 = draw(st.integers(x0 + 1, 300)), draw(st.integers(y0 + 1, 200))
    left, top = draw(st.integers(x0, x1 - 1)), draw(st.integers(y0, y1 - 1))
    box = left, top, draw(st.integers(left + 1, x1)), draw(st.integers(top + 1, y1))
    return CropGeometry(x0, y0, x1, y1, draw(st.integers(1, 300))), box


@given(boxed_geometries())
def test_box_of_a_mask_is_the_box_to_within_a_pixel(case):
    geometry, (x1, y1, x2, y2) = case
    mask = np.zeros((200, 300), np.uint8)
    mask[y1:y2, x1:x2] = 255
    rows, columns = np.nonzero(geometry.mask_to_crop(mask))
    of_mask = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    box = geometry.boxes_to_crop([[x1, y1, x2, y2]])[0]
    outwards = (box - of_mask) * (1, 1, -1, -1)
    assert (outwards >= -1e-9).all()
    assert (outwards < 1).all()


@given(geometries(), st.lists(st.tuples(*[st.integers(-3000, 6000)] * 4), min_size=1, max_size=5))
def test_boxes_of_whole_pixels_come_back_exactly(geometry, boxes):
    back = geometry.boxes_to_original(geometry.boxes_to_crop(boxes))
    assert back.round().astype(int).tolist() == [list(box) for box in boxes]
    np.testing.assert_allclose(back, boxes, atol=1e-8)


def test_a_single_pixel_of_a_photograph_does_not_vanish():
    geometry = CropGeometry(100, -50, 1100, 950, 64)
    for row, column in ((0, 100), (431, 777), (899, 1099)):
        mask = np.zeros((900, 1200), bool)
        mask[row, column] = True
        assert geometry.mask_to_crop(mask).sum() >= 1
        assert geometry.mask_to_original(geometry.mask_to_crop(mask), 1200, 900)[row, column]
    outside = np.zeros((900, 1200), bool)
    outside[:, :100] = outside[:, 1100:] = True
    assert not geometry.mask_to_crop(outside).any()


def test_masks_of_other_shapes_are_refused():
    geometry = CropGeometry(0, 0, 10, 10, 5)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        geometry.mask_to_crop(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(5, 5\)"):
        geometry.mask_to_original(np.zeros((4, 5)), 10, 10)


boxes = st.tuples(*[st.floats(-1e4, 1e4)] * 4)


@given(st.lists(st.tuples(geometries(), boxes), max_size=10))
def test_boxes_of_many_photographs_move_as_each_by_itself(cases):
    expected = [geometry.boxes_to_crop([box])[0].tolist() for geometry, box in cases]
    frames, sides = [geometry.box for geometry, _ in cases], [[geometry.size] for geometry, _ in cases]
    moved = boxes_to_crops([box for _, box in cases], frames, np.reshape(sides, (-1, 1)))
    assert moved.tolist() == expected


def test_boxes_of_photographs_need_a_crop_each():
    with pytest.raises(ValueError, match="shape"):
        boxes_to_crops([[0, 0, 1, 1]], [[0, 0, 1]], 8)

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.lesions.tiles import Tile, Tiling


@given(
    width=st.integers(5, 90),
    height=st.integers(5, 90),
    side=st.integers(8, 40),
    overlap=st.floats(0, 0.8),
    x0=st.integers(-20, 3),
    y0=st.integers(-20, 3),
    more=st.integers(0, 20),
)
def test_tiles_cover_the_region_and_know_where_they_are(
    width: int, height: int, side: int, overlap: float, x0: int, y0: int, more: int
) -> None:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack([columns, rows, np.full_like(rows, 255)], axis=2).astype(np.uint8)
    box = (x0, y0, width + more, height - 1)
    seen = np.zeros((height, width), int)
    for tile in Tiling(side, overlap, 1.0).cut(image, box):
        assert tile.pixels.shape == (side, side, 3)
        for y, x in np.argwhere(tile.pixels[..., 2] == 255)[:: max(side, 1)]:
            place = tile.boxes_to_original(np.array([[x, y, x + 1, y + 1]]))[0]
            assert place[:2].tolist() == tile.pixels[y, x, :2].tolist()
        origin = tile.boxes_to_original(np.array([[0, 0, side, side]])).astype(int)[0]
        seen[origin[1] : min(origin[3], height - 1), origin[0] : origin[2]] += 1
    inside = np.zeros_like(seen, dtype=bool)
    inside[max(y0, 0) : height - 1, max(x0, 0) :] = True
    assert ((seen > 0) == inside).all()


@pytest.mark.parametrize("length", [64, 65, 100, 333])
def test_neighbours_overlap_at_least_as_asked(length: int) -> None:
    starts = Tiling(64, 0.25, 1.0).offsets(length)
    assert starts[0] == 0
    assert starts[-1] == length - 64
    assert all(0 < b - a <= 48 for a, b in pairwise(starts))


def test_a_small_region_is_one_tile_padded_with_black() -> None:
    (tile,) = Tiling(32, 0.2, 1.0).cut(np.full((10, 20, 3), 200, np.uint8), (0, 0, 20, 10))
    assert tile.pixels.shape == (32, 32, 3)
    assert (tile.pixels[:10, :20] == 200).all()
    assert tile.pixels.sum() == 200 * 3 * 10 * 20


def test_no_tile_size_takes_the_region_whole() -> None:
    (tile,) = Tiling(None, 0.2, 0.5).cut(np.zeros((60, 100, 3), np.uint8), (10, 0, 90, 60))
    assert tile.pixels.shape == (30, 40, 3)
    assert tile.boxes_to_original(np.array([[0.0, 0, 40, 30]])).tolist() == [[10, 0, 90, 60]]


@given(scale=st.floats(0.2, 2), side=st.integers(64, 128), seed=st.integers(0, 999))
def test_boxes_return_to_where_they_were(scale: float, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-50, 400, (20, 4))
    image = np.zeros((151, 203, 3), np.uint8)
    for tile in Tiling(side, 0.3, scale).cut(image, (-7, 11, 190, 140)):
        np.testing.assert_allclose(tile.boxes_to_original(tile.boxes_to_tile(boxes)), boxes, atol=1e-9)


def test_scaled_pixels_show_their_original_place() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:48, 60:64] = 255
    shown = {}
    for tile in Tiling(32, 0.0, 0.5).cut(image, (0, 0, 100, 100)):
        ys, xs = np.nonzero(tile.pixels[..., 0] > 127)
        if len(ys) == 4 * 2:
            box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], float)
            shown[tile.offset] = tile.boxes_to_original(box)[0].tolist()
    assert shown
    assert all(box == [60, 40, 64, 48] for box in shown.values())


def test_only_black_is_outside() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 9  # sensor noise around the field of view
    image[40:, 40:] = 120
    tiles = list(Tiling(32, 0.0, 1.0).cut(image, (0, 0, 64, 64)))
    assert [tile.outside for tile in tiles] == [True, True, True, False]


@given(lit=st.integers(0, 40), value=st.integers(20, 30), channel=st.integers(0, 2), left=st.integers(0, 9))
def test_a_tile_is_outside_below_one_lit_pixel_in_a_hundred(
    lit: int, value: int, channel: int, left: int
) -> None:
    picture = np.full((40, 60, 3), 24, np.uint8)
    view = picture[:, left : left + 50]  # tiles are views with gaps between rows
    ys, xs = np.unravel_index(np.random.default_rng(lit).permutation(40 * 50)[:lit], (40, 50))
    view[ys, xs, channel] = value
    tile = Tile(view, (0, 0), (1.0, 1.0), (0, 0))
    assert tile.outside == (value <= 24 or lit < 20)


def test_fragments_at_a_seam_are_left_to_the_neighbour() -> None:
    first, second = Tiling(64, 0.25, 1.0).cut(np.zeros((64, 108, 3), np.uint8), (0, 0, 108, 64))
    assert (first.shared, second.shared) == ((0, 0, 20, 0), (20, 0, 0, 0))
    lesion = np.array([[50.0, 20, 75, 30]])  # the second tile starts at 44 and shows it whole
    assert second.whole(second.boxes_to_tile(lesion)).tolist() == [True]
    assert first.whole(np.array([[50.0, 20, 64, 30], [50, 20, 60, 30], [43, 20, 64, 30]])).tolist() == [
        False,  # the lesion's visible part
        True,  # ends before the seam
        True,  # begins before the second tile: neither tile shows all of it
    ]
    assert first.whole(np.array([[0.0, 0, 9, 9], [0, 55, 9, 64]])).all(), "the region's own edge is no seam"

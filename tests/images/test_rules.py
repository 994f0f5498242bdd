import numpy as np
import pytest
from PIL import Image, ImageFilter

from drgrade.images.rules import _blur, centre_square, find_box, fit_disc, foreground_box


def disc(width, height, x, y, radius, level=150, background=0):
    """A filled circle, hard-edged: pixels whose centre is within ``radius`` of the point (x, y)."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    grey = np.where(np.hypot(columns - x, rows - y) <= radius, level, background)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def published_box(picture):
    """The decision of o_O written out a second time: Pillow's blur and loops over channels, no shortcuts."""
    height, width = picture.shape[:2]
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.BLUR)).astype(int)
    box = None
    if width > 1.2 * height:
        found = np.zeros((height, width), bool)
        for channel in range(3):
            plane = blurred[..., channel]
            limit = max(plane[:, : width // 32].max(), plane[:, -width // 32 :].max()) + 10
            found |= plane > limit
        if found.any():
            rows, columns = np.nonzero(found)
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            if box[2] - box[0] < 0.8 * height or box[3] - box[1] < 0.8 * height:
                box = None
    if box is None:
        box = max((width - height) // 2, 0), 0, min(width - (width - height) // 2, width), height
    return tuple(int(edge) for edge in box)


# Measured examples of the spec of lesion-based contrastive learning, section 3.
GOLDEN = {
    "whole disc": (disc(1500, 1000, 750.5, 500.5, 490), (259, 9, 1242, 992), "o_O"),
    "truncated disc": (disc(1500, 1000, 750.5, 500.5, 600), (149, 0, 1352, 1000), "o_O"),
    "touches both strips": (disc(1500, 1000, 750, 500, 720), (250, 0, 1250, 1000), "o_O:fallback_square"),
    "nearly square": (disc(1100, 1000, 550, 500, 450), (50, 0, 1050, 1000), "o_O:fallback_square"),
    "portrait": (disc(800, 1000, 400, 500, 350), (0, 0, 800, 1000), "o_O:fallback_square"),
    "dark": (disc(1500, 1000, 750, 500, 490, level=9), (250, 0, 1250, 1000), "o_O:fallback_square"),
    "odd margin": (disc(1501, 1000, 750, 500, 100), (250, 0, 1251, 1000), "o_O:fallback_square"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_box_on_measured_examples(name):
    picture, box, rule = GOLDEN[name]
    assert find_box(picture, "o_O") == (box, rule)


def test_strips_differ_by_a_column_at_1500():
    # 46 columns on the left, 47 on the right: a bright line just inside either strip counts as background
    picture = disc(1500, 1000, 750, 500, 480, level=60)
    for column, is_background in ((43, True), (50, False), (1453 + 2, True), (1446, False)):
        lined = picture.copy()
        lined[:, column] = 255
        assert (foreground_box(lined) is None) is is_background, column


def test_published_box_bit_for_bit_on_random_pictures():
    rng = np.random.default_rng(3)
    for _ in range(25):
        width, height = int(rng.integers(60, 400)), int(rng.integers(60, 250))
        radius = rng.uniform(0.3, 0.7) * height
        picture = disc(width, height, width / 2, height / 2, radius, rng.integers(8, 255)).astype(int)
        picture = picture + rng.integers(0, 25, picture.shape) + rng.integers(0, 240, 3)
        picture = picture.clip(0, 255).astype(np.uint8)
        assert find_box(picture, "o_O")[0] == published_box(picture)


@pytest.mark.parametrize("shape", [(64, 80), (5, 33), (201, 303)])
def test_blur_is_that_of_pillow(shape):
    rng = np.random.default_rng(0)
    for picture in (rng.integers(0, 256, (*shape, 3)), 255 * rng.integers(0, 2, (*shape, 3))):
        picture = picture.astype(np.uint8)
        expected = np.asarray(Image.fromarray(picture).filter(ImageFilter.BLUR))
        np.testing.assert_array_equal(_blur(picture), expected)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1500, 1000, (250, 0, 1250, 1000)), (1101, 1000, (50, 0, 1051, 1000)), (800, 1000, (0, 0, 800, 1000))],
)
def test_centre_square(width, height, box):
    assert centre_square(width, height) == box


def assert_circle(picture, x, y, radius):
    circle = fit_disc(picture)
    assert circle is not None
    assert (circle.x, circle.y, circle.radius) == pytest.approx((x, y, radius), abs=0.015 * radius)
    (x0, y0, x1, y1), rule = find_box(picture, "disc")
    assert rule == "disc"
    assert x1 - x0 == y1 - y0
    expected = x - radius, y - radius, x + radius, y + radius
    assert (x0, y0, x1, y1) == pytest.approx(expected, abs=0.02 * radius)


@pytest.mark.parametrize(
    ("width", "height", "x", "y", "radius"),
    [
        (900, 600, 450, 300, 280),
        (900, 600, 450, 300, 400),  # cut off at top and bottom
        (600, 900, 300, 450, 330),  # portrait, cut off left and right
        (900, 600, 300, 300, 290),  # off centre
        (600, 600, 300, 300, 299),  # fills a square
        (300, 200, 150, 100, 90),  # small
    ],
)
def test_disc_in_any_frame(width, height, x, y, radius):
    assert_circle(disc(width, height, x, y, radius), x, y, radius)


def test_disc_in_the_dark():
    assert_circle(disc(900, 600, 450, 300, 280, level=14, background=2), 450, 300, 280)


def test_disc_with_a_bright_rim():
    picture = disc(900, 600, 450, 300, 280)
    inner = disc(900, 600, 450, 300, 265, level=1).astype(bool)
    picture[(picture > 0) & ~inner] = 250
    assert_circle(picture, 450, 300, 280)


def test_disc_with_notch_label_and_dark_quadrant():
    picture = disc(900, 600, 450, 300, 280)
    picture[60:120, 640:720] = 150  # tab of the camera's mask
    picture[550:590, 20:140] = 255  # printed label
    picture[300:, :450] = 0
    assert_circle(picture, 450, 300, 280)


def test_disc_with_uneven_light_and_noise():
    columns = np.linspace(0, 1, 900)[None, :, None]
    picture = disc(900, 600, 450, 300, 280) * (1 - 0.8 * columns) * np.array([1, 0.6, 0.4])
    picture = picture + np.random.default_rng(0).normal(4, 2, picture.shape)
    assert_circle(picture.clip(0, 255).astype(np.uint8), 450, 300, 280)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((600, 900, 3), np.uint8),
        np.full((600, 900, 3), 120, np.uint8),
        np.random.default_rng(0).integers(0, 256, (600, 900, 3)).astype(np.uint8),
        np.full((1, 1, 3), 200, np.uint8),
    ],
    ids=["black", "no border", "noise", "one pixel"],
)
def test_no_disc_falls_back_and_says_so(picture):
    height, width = picture.shape[:2]
    assert find_box(picture, "disc") == (centre_square(width, height), "disc:fallback_square")


def test_a_bright_square_is_not_a_disc():
    picture = np.zeros((600, 900, 3), np.uint8)
    picture[20:580, 100:800] = 150
    box, rule = find_box(picture, "disc")
    assert rule == "disc:fallback_o_O"
    assert box == pytest.approx((100, 20, 800, 580), abs=2)


def test_unknown_rule():
    with pytest.raises(ValueError, match="no crop rule 'oval'"):
        find_box(np.zeros((9, 9, 3), np.uint8), "oval")

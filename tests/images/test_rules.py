import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from drgrade.images import rules
from drgrade.images.rules import _blur, centre_square, disc_box, find_box, fit_disc, foreground_box


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
    if width > 1.2 * height and width >= 32:  # below, the published strip is empty and its maximum fails
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


def with_strip(picture, columns):
    """A bright strip down the image, as a label or a light leak makes it."""
    lit = picture.copy()
    lit[:, columns] = 255
    return lit


# Measured examples of the published algorithm: lesion-based contrastive learning and o_O.
GOLDEN = {
    "whole disc": (disc(1500, 1000, 750.5, 500.5, 490), (259, 9, 1242, 992), "o_O"),
    "truncated disc": (disc(1500, 1000, 750.5, 500.5, 600), (149, 0, 1352, 1000), "o_O"),
    "touches both strips": (disc(1500, 1000, 750, 500, 720), (250, 0, 1250, 1000), "o_O:fallback_square"),
    "nearly square": (disc(1100, 1000, 550, 500, 450), (50, 0, 1050, 1000), "o_O:fallback_square"),
    "portrait": (disc(800, 1000, 400, 500, 350), (0, 0, 800, 1000), "o_O:fallback_square"),
    "dark": (disc(1500, 1000, 750, 500, 490, level=9), (250, 0, 1250, 1000), "o_O:fallback_square"),
    "ten levels above": (
        disc(1500, 1000, 750, 500, 490, 30, 20),
        (250, 0, 1250, 1000),
        "o_O:fallback_square",
    ),
    # only where the blur's whole 5x5 rim lies on the disc, 3 pixels short of its edge
    "eleven levels above": (disc(1500, 1000, 750.5, 500.5, 490, 31, 20), (263, 13, 1238, 988), "o_O"),
    "small, odd margin": (disc(1501, 1000, 750, 500, 100), (250, 0, 1251, 1000), "o_O:fallback_square"),
    "bright strip at the edge": (
        with_strip(disc(1500, 1000, 750, 500, 490), np.s_[5:20]),
        (250, 0, 1250, 1000),
        "o_O:fallback_square",
    ),
    # beside the eye, out of the side strips, it belongs to the box: it and its blur, 2 pixels each way
    "bright strip further in": (
        with_strip(disc(1500, 1000, 750.5, 500.5, 490), np.s_[100:110]),
        (98, 0, 1242, 1000),
        "o_O",
    ),
    "exactly 1.2 times as wide": (
        disc(1200, 1000, 600, 500, 450),
        (100, 0, 1100, 1000),
        "o_O:fallback_square",
    ),
    "a column wider": (disc(1201, 1000, 600.5, 500.5, 450), (149, 49, 1052, 952), "o_O"),
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


@st.composite
def painted(draw):
    """A noisy disc anywhere in a tinted frame of any shape, with a bright or dark rectangle on it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width, height = draw(st.integers(20, 400)), draw(st.integers(20, 250))
    x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
    picture = disc(width, height, x, y, draw(st.floats(0.2, 0.8)) * height, draw(st.integers(1, 255)))
    picture = picture + rng.integers(0, draw(st.integers(1, 40)), picture.shape)
    picture = picture + rng.integers(0, draw(st.sampled_from([1, 60, 240])), 3)
    if draw(st.booleans()):
        (x0, x1), (y0, y1) = (np.sort(rng.integers(0, side + 1, 2)) for side in (width, height))
        picture[y0:y1, x0:x1] = draw(st.sampled_from([0, 80, 255]))
    return picture.clip(0, 255).astype(np.uint8)


@given(painted(), st.sampled_from([1, 2, 3, 17, 256]))
def test_published_box_bit_for_bit(picture, band):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "BAND", band)
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


FRAMES = {
    "whole": (900, 600, 450, 300, 280),
    "cut off at top and bottom": (900, 600, 450, 300, 400),
    "cut off at the top": (900, 600, 450, 200, 290),
    "portrait": (600, 900, 300, 450, 280),
    "portrait, cut off left and right": (600, 900, 300, 450, 330),
    "off centre": (900, 600, 300, 300, 290),
    "fills a square": (600, 600, 300, 300, 299),
    "small in its frame": (900, 600, 400, 330, 200),
}
"""Width and height of the image, centre and radius of the eye."""


def away(width, height, x, y, radius):
    """Distance of each pixel's centre from the eye's edge, positive outside, in radii."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return (np.hypot(columns - x, rows - y) - radius)[..., None] / radius


def side(width, height, x, y, radius):
    """How far right of the eye's centre each pixel lies, and how far down, in radii."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return ((columns - x) / radius)[..., None], ((rows - y) / radius)[..., None]


def dark(*frame):
    return disc(*frame, level=9, background=1)


def grey_border(*frame):
    return disc(*frame, background=25)


def bright_rim(*frame):
    edge = away(*frame)
    return np.where((edge <= 0) & (edge > -0.05), 250, disc(*frame))


def bright_crescent(*frame):
    edge, (right, _) = away(*frame), side(*frame)
    return np.where((edge <= 0) & (edge > -0.1) & (right > 0), 255, disc(*frame, level=90))


def halo(*frame):
    edge = away(*frame)
    return np.where(edge > 0, 40 * np.exp(-35 * edge.clip(0)), disc(*frame))


def notch(*frame):
    right, down = side(*frame)
    return np.where((right > 0.9) & (np.abs(down) < 0.06), 0, disc(*frame))


def tab(*frame):
    right, down = side(*frame)
    return np.where((np.abs(right - 0.7) < 0.15) & (np.abs(down + 0.7) < 0.15), 150, disc(*frame))


def dark_quadrant(*frame):
    right, down = side(*frame)
    return np.where((right < 0) & (down > 0), 0, disc(*frame))


def uneven(*frame):
    light = np.linspace(1, 0.2, frame[0])[None, :, None] * (1, 0.6, 0.4)
    return disc(*frame) * light + np.random.default_rng(0).normal(4, 2, (frame[1], frame[0], 3))


def blurred(*frame):
    return cv2.GaussianBlur(disc(*frame), (0, 0), 0.02 * frame[4])


def vignette(*frame):
    return disc(*frame) * (1 - 0.9 * (1 + away(*frame)).clip(0, 1) ** 4)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("paint", "tolerance"),
    [
        (disc, 1.5),
        (dark, 1.5),
        (grey_border, 1.5),
        (bright_rim, 1.5),
        (bright_crescent, 1.5),
        (notch, 1.5),
        (tab, 1.5),
        (dark_quadrant, 2),
        (uneven, 2),
        (halo, 3),
        (blurred, 5),
        (vignette, 12),  # ends at a tenth of its light: the box keeps what can be seen
    ],
)
def test_disc_within_pixels_at_512(paint, tolerance, frame):
    x, y, radius = FRAMES[frame][2:]
    picture = paint(*FRAMES[frame]).clip(0, 255).astype(np.uint8)
    box, rule = find_box(picture, "disc")
    assert rule == "disc"
    assert box[2] - box[0] == box[3] - box[1]
    exact = x - radius, y - radius, x + radius, y + radius
    assert np.abs(np.subtract(box, exact)).max() * 512 / (2 * radius) <= tolerance


def visible_share(width, height, x, y, radius):
    """Share of a circle's outline that lies in the image."""
    angles = np.linspace(0, 2 * np.pi, 3600)
    columns, rows = x + radius * np.cos(angles), y + radius * np.sin(angles)
    return np.mean((columns > 0) & (columns < width) & (rows > 0) & (rows < height))


def test_a_circle_of_which_too_little_is_seen_is_not_taken():
    frame = 600, 600, 300, 300, 380
    assert visible_share(*frame) < 0.18
    assert fit_disc(disc(*frame)) is None
    assert find_box(disc(*frame), "disc") == ((0, 0, 600, 600), "disc:fallback_square")


@given(
    st.sampled_from([(900, 600), (600, 600), (450, 600)]),
    st.floats(0.35, 0.62),
    st.tuples(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08)),
    st.tuples(st.integers(0, 30), st.integers(10, 200)),
    st.integers(0, 2**32 - 1),
)
def test_disc_of_any_size_place_and_light(frame, radius, shift, light, seed):
    width, height = frame
    x, y = width / 2 + shift[0] * height, height / 2 + shift[1] * height
    radius *= min(width, height)
    # a fifth of the outline must be seen, and of a ring 3 working pixels (1 % of the radius or so) outside it
    assume(visible_share(width, height, x, y, 1.02 * radius) > 0.25)
    background, contrast = light
    clean = disc(width, height, x, y, radius, background + contrast, background)
    noise = np.random.default_rng(seed).normal(0, 0.05 * contrast, clean.shape)
    picture = (clean + noise).round().clip(0, 255).astype(np.uint8)
    circle = fit_disc(picture)
    assert circle is not None
    error = np.abs(np.subtract(circle, (x, y, radius))).max()
    assert error * 512 / (2 * radius) <= 1.5


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
    with pytest.raises(ValueError, match="'oval' finds no box; those that do are disc, o_O, graham"):
        find_box(np.zeros((9, 9, 3), np.uint8), "oval")


class TestMiddleRow:
    """graham's radius: half the pixels of the middle row above a tenth of its mean."""

    @pytest.mark.parametrize(
        ("picture", "box"),
        [
            (disc(900, 600, 450, 300, 280), (170, 20, 730, 580)),
            (disc(900, 600, 450, 300, 400), (50, -100, 850, 700)),
            (disc(600, 900, 300, 450, 330), (0, 150, 600, 750)),  # the row ends with the image
            (disc(901, 601, 470, 300, 250), (200, 50, 700, 550)),  # the middle is the image's, as published
        ],
        ids=["whole", "cut off", "portrait", "off centre"],
    )
    def test_published_radius(self, picture, box):
        assert find_box(picture, "graham") == (box, "graham")

    def test_counts_what_is_above_a_tenth_of_the_mean_of_the_summed_channels(self):
        picture = np.zeros((101, 100, 3), np.uint8)
        row = picture[50]
        row[20:80] = 100, 50, 18  # 60 pixels of 168, and three more
        row[5], row[6], row[95] = (4, 4, 2), (4, 4, 3), (110, 0, 0)  # a tenth of the mean is 10.2
        assert find_box(picture, "graham") == ((19, 19, 81, 81), "graham")

    def test_contradicted_by_the_disc(self):
        off = disc(900, 600, 280, 300, 270)
        assert find_box(off, "graham") == (disc_box(off), "graham:fallback_disc")
        blotted = disc(900, 600, 450, 300, 280)
        blotted[300, 250:] = 0
        assert find_box(blotted, "graham") == (disc_box(blotted), "graham:fallback_disc")
        assert disc_box(blotted) == pytest.approx((170, 20, 730, 580), abs=2)

    def test_nothing_to_count(self):
        for width, height in ((900, 600), (600, 900), (1, 1)):
            black = np.zeros((height, width, 3), np.uint8)
            assert find_box(black, "graham") == (centre_square(width, height), "graham:fallback_square")
        speck = np.zeros((600, 900, 3), np.uint8)
        speck[290:310, 440:460] = 200
        assert find_box(speck, "graham") == (centre_square(900, 600), "graham:fallback_square")

"""Corruptions: what they leave alone, and that they do more harm the higher the severity."""

from itertools import pairwise
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drgrade.params.results import CorruptionName
from drgrade.robustness.corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages, corrupted

GAINS = ["darker", "brighter", "colour_shift"]


def eye(side: int) -> np.ndarray:
    """An orange disc on black with uneven light and colour, fine texture, vessels and small dark lesions."""
    rng = np.random.default_rng(3)

    def smooth(cells: int, *channels: int) -> np.ndarray:
        noise = rng.normal(size=(cells, cells, *channels))
        return cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC)

    base = 0.8 + 0.04 * sum(smooth(cells) for cells in (8, 32, 128, 256))
    for x, y in rng.integers(100, 412, (40, 2)):
        cv2.circle(base, (int(x), int(y)), 3, 0.4, -1)
        cv2.line(base, (256, 256), (int(x), int(y)), 0.6, 2)
    disc = np.hypot(*(np.indices((512, 512)) - 255.5)) < 240
    colour = np.array([190, 90, 40]) * np.clip(1 + 0.15 * smooth(4, 3), 0.5, 1.3)
    picture = np.clip(base * disc, 0, 1)[..., None] * colour
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8)


def damage(picture: np.ndarray, name: str, severity: int) -> float:
    """Mean absolute change of a pixel."""
    return float(np.abs(corrupted(picture, name, severity).astype(float) - picture).mean())


def test_params_name_every_corruption():
    assert list(get_args(CorruptionName)) == list(CORRUPTIONS)


@given(
    arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3))),
    st.sampled_from(list(CORRUPTIONS)),
    st.sampled_from(SEVERITIES),
)
@settings(max_examples=60, deadline=None)
def test_any_image_keeps_shape_and_type_and_is_corrupted_alike_each_time(picture, name, severity):
    before = picture.copy()
    found = corrupted(picture, name, severity)
    assert (found.shape, found.dtype) == (picture.shape, np.uint8)
    np.testing.assert_array_equal(found, corrupted(picture, name, severity))
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(corrupted(picture, name, 0), before)


@pytest.mark.parametrize("side", [128, 512])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_grows_with_severity(name, side):
    picture = eye(side)
    found = [damage(picture, name, severity) for severity in SEVERITIES]
    assert found[0] > 0.05
    assert all(less < more for less, more in pairwise(found))


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_black_border_stays_black(name, severity):
    picture = eye(128)
    border = picture.max(axis=2) == 0
    assert border.mean() > 0.2
    assert not corrupted(picture, name, severity)[border].any()


def test_factors_are_those_of_the_table():
    picture = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert corrupted(picture, "darker", 3)[0, 0].tolist() == [100, 50, 25]
    assert corrupted(picture, "brighter", 5)[0, 0].tolist() == [255, 200, 100]
    assert corrupted(picture, "colour_shift", 2)[0, 0].tolist() == [160, 100, 60]


def test_lengths_are_shares_of_the_side():
    """A blur of twice the pixels on a crop of twice the side: the same image, but for its sampling."""
    large, small = eye(512), eye(256)
    for name in ("blur", "resolution"):
        shrunk = cv2.resize(corrupted(large, name, 5), (256, 256), interpolation=cv2.INTER_AREA)
        apart = np.abs(shrunk.astype(float) - corrupted(small, name, 5)).mean()
        harm = damage(small, name, 5)
        assert (apart < harm / 3) == (name == "blur")


def test_a_blurred_point_has_the_deviation_of_the_table():
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[112:144, 112:144] = 255
    found = corrupted(picture, "blur", 5)[128, :, 0].astype(float)
    slope = np.abs(np.diff(found[:128]))
    place = np.arange(len(slope))
    mean = (place * slope).sum() / slope.sum()
    assert np.sqrt(((place - mean) ** 2 * slope).sum() / slope.sum()) == pytest.approx(0.02 * 256, rel=0.05)


def test_resolution_keeps_no_more_than_the_pixels_of_the_table():
    """Stripes of one pixel vanish where a quarter of the side is kept."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(corrupted(stripes, "resolution", 4)[:, 8:-8].astype(int)) <= 2


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("blur", 6), ("blur", -1)])
def test_unknown_corruptions_are_refused(name, severity):
    with pytest.raises(ValueError, match="choose blur, jpeg"):
        corrupted(eye(32), name, severity)


def test_images_are_corrupted_when_read():
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
    seen = CorruptedImages(images, "darker", 3)
    assert (len(seen), seen.shape) == (5, images.shape)
    np.testing.assert_array_equal(seen[2], corrupted(images[2], "darker", 3))
    expected = np.stack([corrupted(images[row], "darker", 3) for row in (4, 1)])
    np.testing.assert_array_equal(seen[np.array([4, 1])], expected)
    assert seen[np.array([], int)].shape == (0, 24, 24, 3)

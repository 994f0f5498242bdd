import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from drgrade.images.contrast import without_local_mean, without_local_median

SIDES = [32, 63, 100, 256]


def noise(side, seed=0):
    """Smooth shapes, with noise upon them."""
    rng = np.random.default_rng(seed)
    shapes = ndimage.gaussian_filter(rng.normal(0, 1, (side, side, 3)), (side / 20, side / 20, 0))
    picture = 120 + 30 * shapes / shapes.std() + rng.normal(0, 6, shapes.shape)
    return picture.round().clip(0, 255).astype(np.uint8)


def distance(side):
    """Of each pixel's centre from that of the pixel in the middle, where OpenCV centres a circle."""
    rows, columns = np.indices((side, side))
    return np.hypot(rows - side // 2, columns - side // 2)


@pytest.mark.parametrize("side", SIDES)
def test_local_mean_is_a_gaussian_of_a_thirtieth_of_the_radius(side):
    picture = noise(side)
    sigma = side / 60
    mean = ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="mirror", truncate=5)
    expected = (4.0 * picture - 4 * mean + 128).clip(0, 255)
    inside = distance(side) < int(0.45 * side) - 1
    difference = np.abs(without_local_mean(picture) - expected)[inside]
    # the mean is rounded to a grey level before the fourfold stretch, and its kernel ends at 3 sigma
    assert difference.max() <= 5
    assert difference.mean() <= 1.5


@pytest.mark.parametrize("side", SIDES)
def test_local_median_is_that_of_the_window(side):
    picture = noise(side)
    result = without_local_median(picture)
    half = side // 20
    for row, column in ((side // 2, side // 2), (side // 2 - side // 4, side // 2), (side // 2, side // 3)):
        window = picture[row - half : row + half + 1, column - half : column + half + 1]
        median = np.median(window, axis=(0, 1))
        expected = (4 * (picture[row, column] - median) + 128).clip(0, 255)
        assert result[row, column].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("without", "radius", "outside"),
    [
        (without_local_mean, lambda side: int(0.45 * side), 128),
        (without_local_median, lambda s: s * 90 // 200, 0),
    ],
    ids=["mean", "median"],
)
@pytest.mark.parametrize("side", [*SIDES, 512])
def test_a_flat_crop_is_grey_in_the_disc(without, radius, outside, side):
    result = without(np.full((side, side, 3), (200, 90, 30), np.uint8))
    away = distance(side)
    assert (result[away <= radius(side) - 1] == 128).all()
    assert (result[away >= radius(side) + 1] == outside).all()


def test_constants_of_clpi_at_1024():
    flat = without_local_median(np.full((1024, 1024, 3), 77, np.uint8))
    for row, column in ((512, 512 + 460), (512, 512 - 460), (512 + 460, 512), (512 - 460, 512)):
        assert flat[row, column].tolist() == [128] * 3
    for row, column in ((512, 512 + 461), (512, 512 - 461), (512 + 461, 512), (512 - 461, 512)):
        assert flat[row, column].tolist() == [0] * 3
    # a bright block is the median of the window about its middle as soon as it fills more than half of it:
    # kernel 103 has 10,609 pixels, a block of 73 is 5,329 of them, one of 72 is 5,184
    for block, level in ((73, 128), (72, 128 + 4 * 20)):
        picture = np.full((1024, 1024, 3), 100, np.uint8)
        picture[512 - block // 2 :, 512 - block // 2 :][:block, :block] = 120
        assert without_local_median(picture)[512, 512].tolist() == [level] * 3


def test_graham_radius_at_the_published_size():
    # R = 300: an image of 600, a disc of 270
    picture = np.zeros((600, 600, 3), np.uint8)
    picture[::2] = 255  # stripes finer than the mean: 4 x +-127.5 saturates both ways
    result = without_local_mean(picture)
    assert set(np.unique(result[300, 30:571])) == {255}
    assert set(np.unique(result[301, 40:561])) == {0}
    assert result[300, 29].tolist() == result[300, 571].tolist() == [128] * 3


@given(st.sampled_from([32, 47, 64]), st.integers(0, 1000), st.integers(-60, 60))
def test_brightness_of_the_whole_does_not_matter(side, seed, lift):
    picture = noise(side, seed) // 2 + 60
    lifted = (picture.astype(int) + lift).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(without_local_median(picture), without_local_median(lifted))
    difference = without_local_mean(picture).astype(int) - without_local_mean(lifted)
    assert np.abs(difference).max() <= 4  # one level of the rounded mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.images.statistics import EYEPACS, PUBLISHED, measure


def photographs(seed, count=5, side=6):
    """Images whose channels are correlated, as those of a retina, with black borders."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, side, side, 1))
    colours = 110 + 50 * common + 25 * rng.normal(size=(count, side, side, 3))
    colours[:, 0] = 0
    return colours.clip(0, 255).astype(np.uint8)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(1, 8))
def test_statistics_are_those_of_all_pixels_at_once(seed, rows, batch):
    images = photographs(seed)
    found = measure(images, rows, batch)
    pixels = images[rows].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-10)
    # principal axes by another way: singular values of the standardised pixels
    standardised = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)
    _, lengths, directions = np.linalg.svd(standardised, full_matrices=False)
    axes = np.array(found.axes) / found.std
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), lengths / np.sqrt(len(pixels)), atol=1e-6)
    np.testing.assert_allclose(axes.T @ axes, standardised.T @ standardised / len(pixels), atol=1e-9)
    np.testing.assert_allclose(np.abs((axes * directions).sum(1)), np.linalg.norm(axes, axis=1), atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_neither_batch_size_nor_order_matters(seed, batch):
    images = photographs(seed)
    expected = measure(images, np.arange(5))
    assert measure(images, np.arange(5), batch) == expected
    assert measure(images, np.arange(5)[::-1], batch) == expected


@given(st.integers(0, 10_000))
def test_the_largest_component_of_an_axis_is_positive(seed):
    found = measure(photographs(seed), np.arange(5))
    axes = np.array(found.axes) / found.std
    assert (axes[np.arange(3), np.abs(axes).argmax(axis=1)] > 0).all()


def test_only_the_rows_that_are_given_count():
    images = photographs(0)
    expected = measure(images, [1, 3])
    images[[0, 2, 4]] = 255
    assert measure(images, [1, 3]) == expected


def test_published_constants():
    """Grey levels of o_O; the axes are orthogonal in standardised units and as long as published."""
    np.testing.assert_allclose(np.array(PUBLISHED.mean) * 255, [108.64628601, 75.86886597, 54.34005737])
    np.testing.assert_allclose(np.array(PUBLISHED.std) * 255, [70.53946096, 51.71475228, 43.03428563])
    axes = np.array(PUBLISHED.axes) / PUBLISHED.std
    lengths = np.array([1.65513492, 0.48450358, 0.1565086])
    # published directions are means over batches, so their length is a little below 1
    np.testing.assert_allclose(axes @ axes.T, np.diag(lengths**2), rtol=5e-4, atol=1e-5)
    assert axes[0] / lengths[0] == pytest.approx([-0.56543481, -0.5989477, -0.56694071])  # red, green, blue
    # the second moment of standardised colours has the channels' variances, 1, on its diagonal
    assert (axes**2).sum(axis=0) == pytest.approx(1, abs=0.005)


def test_two_measurements_of_eyepacs_agree():
    np.testing.assert_allclose(EYEPACS.mean, PUBLISHED.mean, atol=0.001)
    np.testing.assert_allclose(EYEPACS.std, PUBLISHED.std, atol=0.001)


def test_nothing_to_measure():
    images = photographs(0)
    with pytest.raises(UserError, match="no training images"):
        measure(images, [])
    images[..., 2] = 0
    with pytest.raises(UserError, match="same value"):
        measure(images, [0, 1])

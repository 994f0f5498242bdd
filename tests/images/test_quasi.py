import warnings

import numpy as np
import pydantic
import pytest
import torch

from drgrade.images.augment import apply, draw, transforms
from drgrade.images.quasi import IDENTITY, halton, quasi_random, sobol
from drgrade.params.block import Augment, TestTime

ALL = Augment(
    scale=[0.8, 1.2], translate=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2,
    zoom=[1 / 1.15, 1.15], pca=0.5,
)  # fmt: skip
KEYS = ALL.model_dump()


def van_der_corput(index, base):
    """The digits of an index in a base, mirrored at the point."""
    value, place = 0.0, 1 / base
    while index:
        index, digit = divmod(index, base)
        value, place = value + digit * place, place / base
    return value


def log_zooms(count, skip=0):
    draws = halton(KEYS, count, skip)
    return np.log(draws["zoom_x"]), np.log(draws["zoom_y"])


def test_names_of_draws_are_those_of_the_augmentation():
    assert set(IDENTITY) == set(draw(KEYS, [0]))


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_one_transform_is_the_image_as_it_is(sequence):
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changes = quasi_random(TestTime(sequence=sequence, skip=3), ALL)
    assert transforms(changes) == 1
    torch.testing.assert_close(apply(image, changes, 32), image, atol=1e-6, rtol=0)


def test_the_first_of_sobol_is_the_image_as_it_is():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changes = quasi_random(TestTime(transforms=6, skip=50), ALL)
    found = apply(image.expand(6, -1, -1, -1), changes, 32)
    torch.testing.assert_close(found[:1], image, atol=1e-6, rtol=0)
    assert ((found[1:] - image).abs().mean(dim=(1, 2, 3)) > 0.05).all()


def test_flips_are_the_image_and_its_mirror_images():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for augment in (ALL, Augment(flip=0.0)):  # whatever the training changed
        changes = quasi_random(TestTime(transforms=4, sequence="flips"), augment)
        found = apply(image.expand(4, -1, -1, -1), changes, 32)
        expected = torch.cat([image, image.flip(3), image.flip(2), image.flip(2, 3)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    two = quasi_random(TestTime(transforms=2, sequence="flips"), ALL)
    assert torch.equal(two.moves, changes.moves[:2])
    with pytest.raises(pydantic.ValidationError, match="flips are 2 or 4 transforms, not 3; take sobol"):
        TestTime(transforms=3, sequence="flips")


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_transforms_are_the_same_every_time_and_do_not_depend_on_their_number(sequence):
    few, many = (quasi_random(TestTime(transforms=n, sequence=sequence), ALL) for n in (5, 12))
    again = quasi_random(TestTime(transforms=12, sequence=sequence), ALL)
    for name, part in many._asdict().items():
        assert torch.equal(part, getattr(again, name))
        assert torch.equal(part[:5], getattr(few, name))


@pytest.mark.parametrize(("sequence", "always"), [(sobol, 1), (halton, 0)])
def test_skip_shifts_the_sequence(sequence, always):
    """``always`` transforms come before the sequence and are not skipped."""
    whole, later = sequence(KEYS, 20, 0), sequence(KEYS, 13, 7)
    for name, values in later.items():
        np.testing.assert_array_equal(values[always:], whole[name][7 + always :])


def test_halton_is_the_published_sequence():
    """Ten prime bases from index 1, mapped to the ranges of the augmentation."""
    count, skip = 30, 2
    index = range(skip + 1, skip + 1 + count)
    points = [
        np.array([van_der_corput(number, base) for number in index])
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23)
    ]
    draws = halton(KEYS, count, skip)
    np.testing.assert_allclose(np.rad2deg(draws["angle"]), 360 * points[0] - 180, atol=1e-9)
    np.testing.assert_allclose(draws["shift_x"], 0.2 * (2 * points[1] - 1), atol=1e-12)
    np.testing.assert_allclose(draws["shift_y"], 0.2 * (2 * points[2] - 1), atol=1e-12)
    for number in range(3):
        normal = torch.distributions.Normal(0.0, 0.5).icdf(torch.from_numpy(points[3 + number]))
        np.testing.assert_allclose(draws[f"pca_{number}"], normal, atol=1e-9)
    np.testing.assert_allclose(draws["zoom_x"], 1.15 ** (2 * points[6] - 1), rtol=1e-12)
    np.testing.assert_allclose(draws["zoom_y"], 1.15 ** (2 * points[7] - 1), rtol=1e-12)
    np.testing.assert_array_equal(draws["flip_x"], points[8] > 0.5)


def test_halton_leaves_out_what_was_not_published():
    draws = halton(KEYS, 10, 0)
    for name in ("flip_y", "width", "height", "place_x", "brightness", "saturation", "hue", "grayscale"):
        assert (draws[name] == IDENTITY[name]).all(), name


def test_published_weakness_of_halton():
    for count in (2, 5, 10):
        assert np.corrcoef(log_zooms(count))[0, 1] == pytest.approx(1)
    assert np.corrcoef(log_zooms(20))[0, 1] == pytest.approx(0.53, abs=0.005)
    blocks = [np.corrcoef(log_zooms(50, skip))[0, 1] for skip in (0, 50, 100)]
    assert blocks == pytest.approx([0.31, -0.52, 0.08], abs=0.01)
    flips = halton(KEYS, 12, 0)["flip_x"]
    assert flips.tolist() == [False] * 11 + [True]


def test_sobol_has_no_such_weakness():
    for skip in (0, 50, 100):
        draws = sobol(KEYS, 50, skip)
        zooms = np.log([draws["zoom_x"][1:], draws["zoom_y"][1:]])
        assert abs(np.corrcoef(zooms)[0, 1]) < 0.3
        assert 0.35 < draws["flip_x"][1:].mean() < 0.65
        assert draws["flip_x"][1:12].any()


def test_sobol_covers_every_range_evenly():
    """Each of 16 parts of a range has one of 16 points in a row."""
    draws = sobol(KEYS, 49, 0)
    ranges = {"angle": np.pi, "shift_x": 0.2, "shift_y": 0.2, "hue": 0.2 * np.pi, "place_x": 1.0}
    for name, limit in ranges.items():
        counts, _ = np.histogram(draws[name][1:], bins=16, range=(-limit, limit))
        assert (counts == 3).all(), name


def test_changes_that_are_off_stay_off():
    off = Augment(
        flip=0, rotation=90, scale=[1, 1], ratio=[1, 1], translate=0, brightness=0, contrast=0
    )  # fmt: skip
    for sequence in ("sobol", "halton"):
        changes = quasi_random(TestTime(transforms=9, sequence=sequence), off)
        assert changes.colours is None
        assert changes.offsets is None
        scale = torch.linalg.det(changes.moves[:, :, :2])
        torch.testing.assert_close(scale, torch.ones(9), atol=1e-5, rtol=0)
        assert transforms(changes) == 9


def test_any_number_of_points_is_drawn_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (2, 3, 50, 64, 65):
            assert transforms(quasi_random(TestTime(transforms=count), ALL)) == count


def test_colour_noise_follows_the_given_axes():
    params = TestTime(transforms=4)
    changes = quasi_random(params, ALL, np.eye(3))
    draws = sobol(KEYS, 4, 0)
    expected = np.stack([draws[f"pca_{number}"] for number in range(3)], axis=1)
    np.testing.assert_allclose(changes.offsets, expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"transforms": 0}, {"skip": -1}, {"sequence": "random"}])
def test_wrong_settings(wrong):
    with pytest.raises(pydantic.ValidationError):
        TestTime(**wrong)

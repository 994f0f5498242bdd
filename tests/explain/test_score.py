import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drgrade.explain.score import energy, scores, to_original
from drgrade.images.geometry import CropGeometry


def disc(side=60, radius=28, x=30.0, y=30.0):
    columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    return np.hypot(columns - x, rows - y) < radius


def brute_auc(values, positive):
    pairs = [
        1.0 if hot > cold else 0.5 if hot == cold else 0.0
        for hot in values[positive]
        for cold in values[~positive]
    ]
    return np.mean(pairs)


def brute_energy(values, lesion, fov):
    inside = list(zip(values[fov].tolist(), lesion[fov].tolist(), strict=True))
    return sum(value for value, hit in inside if hit) / sum(value for value, _ in inside)


def brute_distance(shape, targets):
    """Distance of each pixel centre to the nearest pixel centre of ``targets``."""
    rows, columns = np.indices(shape)
    away = [np.hypot(rows - row, columns - column) for row, column in np.argwhere(targets)]
    return np.min(away, axis=0)


@pytest.mark.parametrize("levels", [3, 1000])
def test_against_brute_force(levels):
    rng = np.random.default_rng(0)
    fov = disc(30, 13, 15, 15)
    lesion = rng.random((30, 30)) < 0.08
    heat = (rng.integers(0, levels, (30, 30)) / levels).astype(np.float32)
    result = scores(heat, lesion, fov, tolerance=0.1)
    assert result["auc"] == pytest.approx(brute_auc(heat[fov], lesion[fov]))
    near = brute_distance(fov.shape, lesion) <= 0.1 * 2 * np.sqrt(fov.sum() / np.pi)
    hottest = fov & (heat == heat[fov].max())
    assert result["pointing"] == pytest.approx(near[hottest].mean())
    assert result["random_pointing"] == pytest.approx(near[fov].mean())
    assert result["energy"] == pytest.approx(brute_energy(heat, lesion, fov))
    assert result["random_energy"] == pytest.approx(lesion[fov].mean())
    field = scores(fov.astype(np.float32), lesion, fov, tolerance=0.1)
    for name in ("auc", "pointing", "energy"):
        assert result[f"fov_{name}"] == pytest.approx(field[name])
    prior = brute_distance(fov.shape, ~fov)
    assert result["prior_auc"] == pytest.approx(brute_auc(prior[fov].round(4), lesion[fov]), abs=2e-3)
    central = fov & (prior > prior.max() - 1e-3)
    assert result["prior_pointing"] == pytest.approx(near[central].mean())
    assert result["prior_energy"] == pytest.approx(brute_energy(prior, lesion, fov))


def test_perfect_and_worst_maps():
    lesion = disc(radius=4, x=20)
    assert scores(lesion.astype(np.float32), lesion, disc())["auc"] == 1
    assert scores(lesion.astype(np.float32), lesion, disc())["pointing"] == 1
    assert scores(lesion.astype(np.float32), lesion, disc())["energy"] == 1
    worst = scores(1 - lesion.astype(np.float32), lesion, disc(), tolerance=0)
    assert (worst["auc"], worst["pointing"], worst["energy"]) == (0, 0, 0)


@pytest.mark.parametrize("value", [0, 0.3, -2])
def test_a_flat_map_is_chance(value):
    result = scores(np.full((60, 60), value, np.float32), disc(radius=4, x=20), disc())
    assert result["auc"] == 0.5
    assert result["pointing"] == pytest.approx(result["random_pointing"])
    assert result["energy"] == pytest.approx(result["random_energy"])


def test_energy_is_the_share_of_positive_values_on_lesions():
    lesion = np.array([True, True, False, False])
    assert energy(np.array([3, -5, 1, -7], np.float32), lesion) == 0.75
    assert energy(np.array([-1, 0, -1, 0], np.float32), lesion) == 0.5


@given(
    values=arrays(np.float32, 12, elements=st.floats(-4, 4, width=16)),
    lesion=arrays(np.bool_, 12),
    factor=st.sampled_from([0.25, 2.0, 64.0]),
)
def test_energy_is_a_share_that_does_not_depend_on_the_scale(values, lesion, factor):
    share = energy(values, lesion)
    assert 0 <= share <= 1
    assert energy(np.float32(factor) * values, lesion) == share
    assert energy(values, ~lesion) == pytest.approx(1 - share)


def test_nothing_is_earned_outside_the_eye():
    lesion = disc(radius=4, x=20)
    heat = np.random.default_rng(0).random((60, 60)).astype(np.float32)
    loud = heat.copy()
    loud[~disc(radius=29)] = 9
    assert scores(heat, lesion, disc()) == scores(loud, lesion, disc())


def test_dark_vessels_and_specks_do_not_change_the_field():
    lesion = disc(radius=4, x=20)
    heat = np.random.default_rng(0).random((60, 60)).astype(np.float32)
    holed = disc()
    holed[20:40, 33] = False
    holed[0, 0] = True
    assert scores(heat, lesion, holed) == scores(heat, lesion, disc())


def test_no_lesion_no_scores():
    heat = np.zeros((60, 60), np.float32)
    assert scores(heat, np.zeros((60, 60), bool), disc()) == {}
    assert scores(heat, ~disc(), disc()) == {}
    assert scores(heat, disc(), np.zeros((60, 60), bool)) == {}


@pytest.mark.parametrize("box", [(-10, 5, 90, 105), (20, -10, 100, 70), (10, 10, 42, 60)])
def test_a_blob_lands_on_its_place_in_the_photograph(box):
    geometry = CropGeometry(*box, size=64)
    heat = np.zeros((32, 32), np.float32)  # half the crop's resolution
    heat[9:12, 20:23] = 1  # middle at (21.5, 10.5), in crop pixels (43, 21)
    original = to_original(heat, geometry, width=120, height=80)
    assert original.shape == (80, 120)
    rows, columns = np.indices(original.shape) + 0.5
    middle = np.average(columns, weights=original), np.average(rows, weights=original)
    assert middle == pytest.approx(geometry.to_original([[43, 21]])[0], abs=0.6)


def test_outside_the_crop_is_cold_and_borders_are_exact():
    original = to_original(np.ones((8, 8), np.float32), CropGeometry(-5, 10, 35, 50, 64), 100, 40)
    expected = np.zeros((40, 100), np.float32)
    expected[10:40, :35] = 1
    np.testing.assert_array_equal(original, expected)
    assert to_original(np.ones((8, 8), np.float32), CropGeometry(200, 0, 240, 40, 64), 100, 40).max() == 0
    assert to_original(np.ones((8, 8), np.float32), CropGeometry(-60, 0, -20, 40, 64), 100, 40).max() == 0

import colorsys

import numpy as np
import pydantic
import pytest
import torch

from drgrade.images import augment as module
from drgrade.images.augment import (
    affine_matrices,
    apply,
    augment,
    changes,
    draw,
    normalise,
    plan,
    repeated,
    resize,
    transforms,
    warp,
)
from drgrade.params import Augment
from drgrade.rng import uniforms

OFF = {
    "flip": 0, "rotation": 0, "scale": [1, 1], "ratio": [1, 1], "translate": 0,
    "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grayscale": 0, "zoom": [1, 1], "pca": 0,
}  # fmt: skip
ALL = {
    "flip": 0.5, "rotation": 180, "scale": [0.8, 1.2], "ratio": [0.8, 1.25], "translate": 0.2,
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2, "zoom": [0.8, 1.2],
    "pca": 0.5,
}  # fmt: skip
STILL = {
    "flip_x": [False], "flip_y": [False], "angle": [0], "width": [1], "height": [1], "place_x": [0],
    "place_y": [0], "shift_x": [0], "shift_y": [0], "zoom_x": [1], "zoom_y": [1],
}  # fmt: skip


def pictures(count=4, side=32, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def moved(batch, **change):
    draws = {key: np.array(value) for key, value in (STILL | change).items()}
    return warp(batch, torch.from_numpy(affine_matrices(draws)).float(), batch.shape[-1])


def test_keys_are_those_of_the_params():
    assert set(ALL) == set(Augment.model_fields)
    out = augment(pictures(2), Augment().model_dump(), [1, 2], 24)
    assert out.shape == (2, 3, 24, 24)


def test_everything_off_is_an_exact_copy():
    batch = pictures()
    assert torch.equal(augment(batch, OFF, range(4), 32), batch)
    whole = (batch * 255).round().to(torch.uint8)
    assert torch.equal(augment(whole, OFF, range(4), 32), whole.float() / 255)


def test_still_warp_copies():
    batch = pictures(1)
    torch.testing.assert_close(moved(batch), batch, atol=1e-5, rtol=0)


def test_flips():
    batch = pictures(1)
    torch.testing.assert_close(moved(batch, flip_x=[True]), batch.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved(batch, flip_y=[True]), batch.flip(2), atol=1e-5, rtol=0)
    assert torch.equal(moved(moved(batch, flip_x=[True]), flip_x=[True]), batch)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_clockwise(quarters):
    batch = pictures(1)
    turned = moved(batch, angle=[quarters * np.pi / 2])
    torch.testing.assert_close(turned, torch.rot90(batch, -quarters, (2, 3)), atol=1e-4, rtol=0)


def test_shift_moves_right_and_down_into_black():
    batch = pictures(1)
    shifted = moved(batch, shift_x=[0.25], shift_y=[0.125])
    expected = torch.zeros_like(batch)
    expected[:, :, 4:, 8:] = batch[:, :, :-4, :-8]
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_crop_is_stretched_to_the_view():
    batch = pictures(1)
    # the left half, full height: every output pixel lies a quarter or three quarters into an input pixel
    out = moved(batch, width=[0.5], place_x=[-1])
    left = batch[..., :16]
    inner = torch.nn.functional.interpolate(left, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out[..., 1:-1], inner[..., 1:-1], atol=1e-5, rtol=0)


def test_area_over_one_zooms_out_into_black():
    out = moved(torch.ones(1, 3, 32, 32), width=[2], height=[2])
    expected = torch.zeros(1, 3, 32, 32)
    expected[:, :, 8:24, 8:24] = 1
    torch.testing.assert_close(out[..., 9:23, 9:23], expected[..., 9:23, 9:23], atol=1e-5, rtol=0)
    assert out[..., :7].max() == 0
    assert out.mean() == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(("zoom_x", "zoom_y"), [(2, 1), (1, 2), (2, 0.5), (0.5, 0.5)])
def test_zoom_stretches_a_block_about_the_centre(zoom_x, zoom_y):
    """A block from -1/4 to 1/2 across and -1/2 to 1/4 down; edges are blurred by two pixels."""
    batch = torch.zeros(1, 3, 64, 64)
    batch[..., 16:40, 24:48] = 1
    out = moved(batch, zoom_x=[zoom_x], zoom_y=[zoom_y])[0, 0]
    rows, columns = out.max(1).values > 0.5, out.max(0).values > 0.5
    for lit, (first, last), zoom in ((columns, (24, 48), zoom_x), (rows, (16, 40), zoom_y)):
        ends = [32 + zoom * (end - 32) for end in (first, last)]
        expected = (torch.arange(64) + 0.5 > ends[0]) & (torch.arange(64) + 0.5 < ends[1])
        assert (lit ^ expected).sum() <= 1
    assert out.sum() == pytest.approx(zoom_x * zoom_y * 24 * 24, rel=0.02)


def test_zoom_keeps_the_point_that_a_shift_brought_to_the_centre():
    draws = {key: np.array(value) for key, value in (STILL | {"shift_x": [0.2], "angle": [0.3]}).items()}
    centre = affine_matrices(draws)[0, :, 2]
    zoomed = affine_matrices(draws | {"zoom_x": np.array([1.5]), "zoom_y": np.array([0.7])})[0, :, 2]
    np.testing.assert_array_equal(zoomed, centre)


def test_without_zoom_and_noise_all_is_as_before_they_existed():
    """Old settings, with as many random numbers as there were, give the same changes bit for bit."""
    old = {key: value for key, value in ALL.items() if key not in ("zoom", "pca")}
    uniform = uniforms(range(20), 14)
    before, now = changes(old, uniform), draw(ALL | {"zoom": [1.0, 1.0], "pca": 0.0}, range(20))
    for key in now:
        np.testing.assert_array_equal(before[key], now[key])
    assert plan(old, before).offsets is None
    assert module.keeps_geometry(OFF)
    assert not module.keeps_geometry(OFF | {"zoom": [0.9, 1.1]})


def test_composed_warp_against_steps_on_points():
    # each step by itself, forwards, on coordinates; the composed matrix must lead back to the start
    draws = draw(ALL, range(50))
    moves = affine_matrices(draws)
    rng = np.random.default_rng(0)
    for index in range(50):
        start = rng.uniform(-1, 1, 2)
        x, y = start
        x, y = (-x if draws["flip_x"][index] else x), (-y if draws["flip_y"][index] else y)
        width, height = draws["width"][index], draws["height"][index]
        x = (x - draws["place_x"][index] * (1 - width)) / width
        y = (y - draws["place_y"][index] * (1 - height)) / height
        angle = draws["angle"][index]
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        x, y = x + 2 * draws["shift_x"][index], y + 2 * draws["shift_y"][index]
        # about the output's centre, so the zoom leaves the shift as a share of the unzoomed side
        x, y = x * draws["zoom_x"][index], y * draws["zoom_y"][index]
        np.testing.assert_allclose(moves[index] @ [x, y, 1], start, atol=1e-12)


@pytest.mark.parametrize("side", [32, 100])
def test_a_sample_does_not_see_its_batch(side):
    batch = (pictures(6, side) * 255).to(torch.uint8)
    seeds = [11, 12, 13, 14, 15, 16]
    together = augment(batch, ALL, seeds, 32)
    alone = torch.cat([augment(batch[i : i + 1], ALL, seeds[i : i + 1], 32) for i in range(6)])
    assert torch.equal(together, alone)
    backwards = augment(batch.flip(0), ALL, seeds[::-1], 32).flip(0)
    assert torch.equal(together, backwards)
    assert not torch.equal(together, augment(batch, ALL, [seed + 1 for seed in seeds], 32))


def test_switching_one_change_off_leaves_the_other_draws():
    off = {"rotation": 0, "hue": 0, "pca": 0}
    full, without = draw(ALL, range(20)), draw(ALL | off, range(20))
    assert not without["angle"].any()
    assert not without["hue"].any()
    for key in set(full) - {"angle", "hue", "pca_0", "pca_1", "pca_2"}:
        np.testing.assert_array_equal(full[key], without[key])


def test_statistics_of_the_draws():
    count = 20_000
    draws = draw(ALL, range(count))
    for key, share in (("flip_x", 0.5), ("flip_y", 0.5), ("grayscale", 0.2)):
        assert draws[key].mean() == pytest.approx(share, abs=0.015)
    assert (draws["flip_x"] & draws["flip_y"]).mean() == pytest.approx(0.25, abs=0.015)
    uniform = {
        "angle": (-np.pi, np.pi), "place_x": (-1, 1), "place_y": (-1, 1), "shift_x": (-0.2, 0.2),
        "shift_y": (-0.2, 0.2), "brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4),
        "hue": (-0.2 * np.pi, 0.2 * np.pi),
    }  # fmt: skip
    values = {key: draws[key] for key in uniform}
    values["area"] = draws["width"] * draws["height"]
    values["log ratio"] = np.log(draws["width"] / draws["height"])
    values |= {f"log {key}": np.log(draws[key]) for key in ("zoom_x", "zoom_y")}
    limits = uniform | {"area": (0.8, 1.2), "log ratio": (np.log(0.8), np.log(1.25))}
    limits |= dict.fromkeys(("log zoom_x", "log zoom_y"), (np.log(0.8), np.log(1.2)))
    for key, (low, high) in limits.items():
        at = (values[key] - low) / (high - low)
        assert at.min() >= -1e-9, key
        assert at.max() <= 1 + 1e-9, key
        assert np.quantile(at, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.015), key
    factors = {key: draws[key] for key in ("pca_0", "pca_1", "pca_2")}
    for key, found in factors.items():
        assert np.quantile(found / 0.5, [0.1587, 0.5, 0.8413]) == pytest.approx([-1, 0, 1], abs=0.04), key
    values |= factors
    correlation = np.corrcoef(np.stack(list(values.values())))
    assert np.abs(correlation - np.eye(len(values))).max() < 0.03


def grey_of(colour):
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def steps(picture, brightness, contrast, saturation, angle, grayscale):
    """Colour changes one after the other on (3, H, W); hue by turning the I, Q plane of Python's colorsys."""
    picture = picture * brightness
    picture = (picture - grey_of(picture).mean()) * contrast + grey_of(picture).mean()
    picture = grey_of(picture) + (picture - grey_of(picture)) * saturation
    out = np.empty_like(picture)
    for row, column in np.ndindex(picture.shape[1:]):
        colour = picture[:, row, column]
        y = grey_of(colour)
        i = 0.5959 * colour[0] - 0.2746 * colour[1] - 0.3213 * colour[2]
        q = 0.2115 * colour[0] - 0.5227 * colour[1] + 0.3112 * colour[2]
        i, q = i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)
        out[:, row, column] = np.linalg.solve(
            [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], [y, i, q]
        )
    if grayscale:
        out = np.broadcast_to(grey_of(out), out.shape)
    return out.clip(0, 1)


def test_composed_colour_against_steps():
    colour = {key: ALL[key] for key in ("brightness", "contrast", "saturation", "hue", "grayscale")}
    batch = pictures(12, 8)
    seeds = list(range(12))
    out = augment(batch, OFF | colour, seeds, 8).numpy()
    draws = draw(OFF | colour, seeds)
    assert draws["grayscale"].any()
    for index in range(12):
        one = {key: draws[key][index] for key in ("brightness", "contrast", "saturation", "grayscale")}
        expected = steps(batch[index].double().numpy(), angle=draws["hue"][index], **one)
        np.testing.assert_allclose(out[index], expected, atol=2e-6)


def test_hue_turns_colours_and_spares_grey():
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    grey = torch.full((1, 3, 4, 4), 0.4)
    draws = draw(OFF, [0]) | {"hue": np.array([2 * np.pi / 3])}
    colours = torch.from_numpy(module.colour_matrices(draws)).float()
    torch.testing.assert_close(module.recolour(grey, colours), grey, atol=1e-6, rtol=0)
    turned = module.recolour(red.contiguous(), colours)[0, :, 0, 0].numpy()
    hue, _, _ = colorsys.rgb_to_hsv(*turned)
    assert abs(hue - 0) > 0.2
    assert grey_of(turned) == pytest.approx(grey_of([0.6, 0.2, 0.2]), abs=1e-5)


def test_published_colour_noise_is_half_a_standard_deviation_of_each_channel():
    """These are 35, 26 and 21 grey levels of red, green and blue."""
    draws = draw(OFF | {"pca": 0.5}, range(40_000))
    levels = 255 * module.colour_offsets(draws)
    assert levels.std(axis=0) == pytest.approx([35, 26, 21], abs=0.6)
    std = np.array([70.53946096, 51.71475228, 43.03428563])
    assert (levels / std).std(axis=0) == pytest.approx(0.5, abs=0.005)
    assert levels.mean(axis=0) == pytest.approx(0, abs=0.6)


def test_colour_noise_is_added_to_every_pixel_after_the_warp():
    batch, seeds = pictures(4), [3, 4, 5, 6]
    params = OFF | {"translate": 0.4, "pca": 0.5}
    plain = augment(batch, params | {"pca": 0}, seeds, 32)
    noise = augment(batch, params, seeds, 32) - plain
    offsets = torch.from_numpy(module.colour_offsets(draw(params, seeds))).float()
    torch.testing.assert_close(noise, offsets[:, :, None, None].expand_as(noise), atol=1e-6, rtol=0)
    assert (plain == 0).any()  # also to the black border
    assert (plain + noise).min() < 0


def test_colour_noise_follows_the_axes_that_are_given():
    draws = draw(OFF | {"pca": 0.2}, range(5))
    found = plan(OFF | {"pca": 0.2}, draws, np.diag([1.0, 2.0, 3.0])).offsets
    expected = np.stack([draws["pca_0"], 2 * draws["pca_1"], 3 * draws["pca_2"]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_colour_noise_is_finite_at_the_smallest_random_number():
    uniform = np.zeros((module.ALL_DRAWS, 1))
    assert np.isfinite(module.colour_offsets(changes(OFF | {"pca": 1.0}, uniform))).all()


@pytest.mark.parametrize("zoom", [[0.0, 1.0], [1.2, 0.8]])
def test_a_zoom_that_is_no_range_is_refused(zoom):
    with pytest.raises(pydantic.ValidationError, match="the smaller one first"):
        Augment(zoom=zoom)


def test_a_repeated_plan_changes_all_images_alike():
    whole = plan(ALL, draw(ALL, [7, 8, 9]))
    assert transforms(whole) == 3
    batch = pictures(2)
    for place in range(3):
        together = apply(batch, repeated(whole, place, 2), 32)
        alone = [augment(batch[i : i + 1], ALL, [7 + place], 32) for i in range(2)]
        assert torch.equal(together, torch.cat(alone))


def test_a_plan_without_changes_is_one_transform():
    nothing = plan(OFF, draw(OFF, [7, 8, 9]))
    assert transforms(nothing) == 1
    assert torch.equal(apply(pictures(), repeated(nothing, 0, 4), 32), pictures())


def test_values_stay_in_range():
    strong = ALL | {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.5, "pca": 0}
    out = augment(pictures(16), strong, range(16), 32)
    assert out.min() >= 0
    assert out.max() <= 1


def test_shrinking_averages_instead_of_skipping():
    # fine stripes: their mean is 0.5 whatever the phase; plain bilinear sampling would alias to 0 or 1
    batch = torch.zeros(1, 3, 256, 256)
    batch[..., ::2] = 1
    for out in (augment(batch, OFF | {"flip": 1}, [0], 64), resize(batch, 64)):
        assert (out[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.05


def test_resize_of_blocks_is_their_mean():
    batch = (pictures(2, 32) * 255).to(torch.uint8)
    means = torch.nn.functional.avg_pool2d(batch.float() / 255, 4)
    assert (resize(batch, 8) - means).abs().mean() < 0.03
    assert torch.equal(resize(batch, 32), batch.float() / 255)


def test_normalise():
    batch = pictures(2, 4)
    out = normalise(batch, [0.1, 0.2, 0.3], [0.5, 0.25, 2.0])
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        torch.testing.assert_close(out[:, channel], (batch[:, channel] - mean) / std)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="square"):
        augment(torch.zeros(1, 3, 8, 9), OFF, [0], 8)
    with pytest.raises(ValueError, match="one a seed"):
        augment(torch.zeros(2, 3, 8, 8), OFF, [0], 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_the_device():
    batch = (pictures(8, 96) * 255).to(torch.uint8)
    there = augment(batch.cuda(), ALL, range(8), 64)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), augment(batch, ALL, range(8), 64), atol=1e-4, rtol=0)

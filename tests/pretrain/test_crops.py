import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drgrade.params import LocalToGlobal
from drgrade.pretrain.crops import (
    PRESETS,
    SEEN,
    MultiCrop,
    View,
    blur,
    draw,
    gaussians,
    middles,
    plan,
    pulled_in,
    render,
    share_in_view,
    views,
)

NONE = np.zeros((0, 2))
LOCAL = views(LocalToGlobal())[2]
GRID = np.stack(np.meshgrid(*[(np.arange(200) + 0.5) / 100 - 1] * 2))  # (2, 200, 200), points of a view


def seen(move):
    """Share of a view's points that a move takes from the unit disc, by counting."""
    points = np.einsum("ij,jhw->ihw", move[:, :2], GRID) + move[:, 2, None, None]
    return (np.square(points).sum(axis=0) <= 1).mean()


def drawn(preset, view, count=400, lesions=NONE):
    return draw(PRESETS[preset], view, range(count), [lesions] * count)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.02, 1), st.floats(0.02, 1))
def test_share_in_view_is_that_counted(x, y, width, height):
    move = np.array([[width, 0, x], [0, height, y]])
    assert abs(share_in_view(np.array([x, y]), np.array([width, height])) - seen(move)) < 0.01


@given(st.sampled_from(sorted(PRESETS)), st.integers(0, 2**62), st.floats(-1, 1), st.floats(-1, 1))
def test_a_local_crop_shows_the_retina(preset, seed, x, y):
    """With a lesion anywhere on the photograph, even in a black corner."""
    for view in views(LocalToGlobal(local_crops=2))[2:]:
        move = draw(PRESETS[preset], view, [seed], [np.array([[x, y]])]).moves[0]
        assert seen(move) >= SEEN - 0.01


@given(st.floats(0, 2 * math.pi), st.floats(0, 1), st.floats(0.05, 0.4), st.floats(-1, 1))
def test_a_lesion_stays_in_the_crop_that_is_pulled_in(angle, radius, area, stretch):
    lesion = radius * np.array([math.cos(angle), math.sin(angle)])
    half = math.sqrt(area) * np.array([(4 / 3) ** (stretch / 2), (4 / 3) ** (-stretch / 2)])
    centre = pulled_in(lesion, half)
    assert share_in_view(centre, half) >= SEEN
    assert (abs(lesion - centre) <= half).all()


def test_numbers_of_the_paper():
    """Section 3.2: two crops of 224 from 0.4 on, six of 96 from 0.05 to 0.4; blur 1, 0.1, 0.5."""
    first, second, *local = views(LocalToGlobal())
    assert [view.size for view in (first, second, *local)] == [224] * 2 + [96] * 6
    assert first.area == second.area == (0.4, 1.0)
    assert {view.area for view in local} == {(0.05, 0.4)}
    assert (first.blur, second.blur, {view.blur for view in local}) == (1.0, 0.1, {0.5})
    assert [view.solarise for view in (first, second, *local)] == [False, True] + [False] * 6


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("view", views(LocalToGlobal())[:3], ids=["first", "second", "local"])
def test_crops_have_the_area_and_ratio_asked_for_and_lie_inside(preset, view):
    plans = drawn(preset, view)
    linear = plans.moves[:, :, :2]
    areas = abs(np.linalg.det(linear))
    assert (areas >= view.area[0] - 1e-9).all()
    assert (areas <= view.area[1] + 1e-9).all()
    assert areas.max() - areas.min() > 0.8 * (view.area[1] - view.area[0])
    assert np.sqrt(areas) == pytest.approx(plans.spans)
    half = np.linalg.norm(linear, axis=1)  # of the columns: a rotation does not change them
    ratios = half[:, 0] / half[:, 1]
    assert ratios.min() >= 3 / 4 - 1e-9
    assert ratios.max() <= 4 / 3 + 1e-9
    turned_back = np.einsum("bji,bj->bi", linear / half[:, None], plans.moves[:, :, 2])
    assert (abs(turned_back) + half <= 1 + 1e-9).all()  # inside the photograph once that is turned back


def test_preset_dino_changes_colours_as_published():
    plans = [drawn("dino", view, 2000) for view in views(LocalToGlobal())[:3]]
    for number, (found, blurred) in enumerate(zip(plans, (1.0, 0.1, 0.5), strict=True)):
        colours = found.colours
        assert (found.moves[:, 0, 1] == 0).all()  # never turned
        assert (found.moves[:, 1, 1] > 0).all()  # never upside down
        assert abs((found.moves[:, 0, 0] < 0).mean() - 0.5) < 0.05
        assert abs((colours["brightness"] != 1).mean() - 0.8) < 0.04
        assert ((colours["brightness"] != 1) == (colours["hue"] != 0)).all()  # all four or none
        for key, strength in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
            assert abs(colours[key] - 1).max() == pytest.approx(strength, rel=0.02)
        assert abs(colours["hue"]).max() == pytest.approx(2 * math.pi * 0.1, rel=0.02)
        assert abs(colours["grayscale"].mean() - 0.2) < 0.04
        assert abs((found.sigmas > 0).mean() - blurred) < 0.04
        assert found.sigmas[found.sigmas > 0].min() == pytest.approx(0.1, abs=0.05)
        assert found.sigmas.max() == pytest.approx(2.0, abs=0.05)
        assert abs(found.solarised.mean() - (0.2 if number == 1 else 0)) < 0.04 * (number == 1) + 1e-9


@pytest.mark.parametrize("preset", ["fundus", "lesion"])
def test_preset_fundus_turns_every_way_and_keeps_the_hue(preset):
    for view in views(LocalToGlobal())[:3]:
        plans = drawn(preset, view, 1000)
        assert (plans.colours["saturation"] == 1).all()
        assert (plans.colours["hue"] == 0).all()
        assert not plans.colours["grayscale"].any()
        assert not plans.solarised.any()
        assert abs(plans.colours["brightness"] - 1).max() == pytest.approx(0.2, rel=0.05)
        mirrored = np.linalg.det(plans.moves[:, :, :2]) < 0
        assert abs(mirrored.mean() - 0.5) < 0.06
        angles = np.arctan2(plans.moves[:, 1, 0], plans.moves[:, 0, 0])
        assert (np.histogram(angles, 8, (-math.pi, math.pi))[0] > 80).all()  # 125 expected


def test_one_local_crop_of_preset_lesion_is_centred_on_a_lesion():
    lesions = np.array([[0.3, -0.2], [-0.4, 0.1]])
    first, second = views(LocalToGlobal(local_crops=2))[2:]
    centres = drawn("lesion", first, lesions=lesions).moves[:, :, 2]
    nearest = np.linalg.norm(centres[:, None] - lesions, axis=2)
    assert nearest.min(axis=1).max() < 1e-9
    assert abs((nearest[:, 0] < nearest[:, 1]).mean() - 0.5) < 0.1  # either of them
    for other in (
        drawn("lesion", second, lesions=lesions),
        drawn("fundus", first, lesions=lesions),
        drawn("lesion", first),
    ):
        assert np.linalg.norm(other.moves[:, None, :, 2] - lesions, axis=2).min(axis=1).max() > 0.1


def test_boxes_are_measured_from_the_middle():
    assert middles(np.array([[0, 0, 10, 10], [30, 50, 50, 70]]), 80) == pytest.approx(
        np.array([[-0.875, -0.875], [0, 0.5]])
    )
    assert middles(np.zeros((0, 4)), 80).shape == middles(np.array([]), 80).shape == (0, 2)


@pytest.mark.parametrize("size", [16, 40, 96, 300])
def test_a_view_shows_the_place_that_its_plan_names(size):
    """A photograph whose colours are coordinates, at every level of the pyramid."""
    side = 240
    ramp = ((torch.arange(side) + 0.5) / side).expand(side, side)
    photograph = torch.stack([ramp, ramp.T, torch.zeros(side, side)])[None].expand(12, -1, -1, -1)
    view = View(size, (0.05, 0.3), 0.0, keeps_retina=True)
    plain = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grayscale": False}
    plans = replace(
        draw(PRESETS["fundus"], view, range(12), [NONE] * 12),
        colours={key: np.full(12, value) for key, value in plain.items()},
    )
    found = render([photograph], plan(plans, side, size), size).numpy()
    centres = (np.arange(size) + 0.5) * 2 / size - 1
    grid = np.stack(np.meshgrid(centres, centres))
    expected = np.einsum("bij,jhw->bihw", plans.moves[:, :, :2], grid) + plans.moves[:, :, 2, None, None]
    inside = (abs(expected) < 0.85).all(axis=1)  # beyond, averaging sees the edge or a turned crop the black
    assert inside.mean() > 0.7
    difference = abs(found[:, :2] * 2 - 1 - expected).max(axis=1)
    assert difference[inside].max() < 0.01


def test_solarisation_inverts_what_is_bright():
    values = torch.tensor([0.0, 0.3, 127 / 255, 128 / 255, 0.8, 1.0])
    photograph = values[:, None, None, None].expand(6, 3, 8, 8)
    plain = drawn("dino", View(8, (1.0, 1.0), 0.0), 6)
    plans = replace(
        plain,
        moves=np.tile(np.eye(2, 3), (6, 1, 1)),
        colours={key: np.zeros(6) if key in ("hue", "grayscale") else np.ones(6) for key in plain.colours},
        solarised=np.array([True] * 6),
    )
    found = render([photograph], plan(plans, 8, 8), 8)
    expected = torch.tensor([0.0, 0.3, 127 / 255, 127 / 255, 0.2, 0.0])
    assert torch.allclose(found.mean(dim=(1, 2, 3)), expected, atol=1e-5)
    kept = plan(replace(plans, solarised=np.array([False] * 6)), 8, 8)
    assert torch.allclose(render([photograph], kept, 8), photograph, atol=1e-5)


def test_blur_is_gaussian():
    batch = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    found = blur(batch, torch.tensor([0, 2]), torch.from_numpy(gaussians(np.array([0.7, 2.0]), 40)))
    assert torch.equal(found[1], batch[1])
    for row, sigma in ((0, 0.7), (2, 2.0)):
        expected = cv2.GaussianBlur(
            batch[row].permute(1, 2, 0).numpy(), (13, 13), sigma, borderType=cv2.BORDER_REFLECT_101
        )
        assert found[row].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)


def multi_crop(preset):
    params = LocalToGlobal(preset=preset, global_size=48, local_size=24, local_crops=3)
    return MultiCrop(params, [0.5] * 3, [0.5] * 3)


PHOTOGRAPHS = torch.randint(
    0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
BOXES = [np.array(boxes) for boxes in ([[10.0, 10, 20, 20]], [], [], [[40.0, 30, 44, 34]] * 2, [])]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_views_depend_on_seed_epoch_and_row_not_on_the_batch(preset):
    multi = multi_crop(preset)

    def crops(photographs, boxes, rows, seed, epoch):
        return multi(photographs, multi.plan(64, boxes, np.array(rows), seed, epoch))

    batch = crops(PHOTOGRAPHS, BOXES, [7, 3, 9, 4, 1], seed=1, epoch=0)
    assert [tuple(crop.shape) for crop in batch] == [(5, 3, 48, 48)] * 2 + [(5, 3, 24, 24)] * 3
    assert all(crop.dtype == torch.float32 and abs(crop).max() <= 1 + 1e-5 for crop in batch)
    alone = crops(PHOTOGRAPHS[3:4], BOXES[3:4], [4], seed=1, epoch=0)
    for together, single in zip(batch, alone, strict=True):
        assert torch.allclose(together[3], single[0], atol=1e-5)
    for rows, seed, epoch in (([5], 1, 0), ([4], 2, 0), ([4], 1, 1)):
        other = crops(PHOTOGRAPHS[3:4], BOXES[3:4], rows, seed=seed, epoch=epoch)
        assert all((one - two).abs().mean() > 0.01 for one, two in zip(alone, other, strict=True))
    again = crops(PHOTOGRAPHS, BOXES, [7, 3, 9, 4, 1], seed=1, epoch=0)
    assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))

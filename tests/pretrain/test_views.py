import colorsys
import math
import os

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric.utilities import move_data_to_device

from drgrade.device import device
from drgrade.errors import UserError
from drgrade.images.augment import augment, normalise
from drgrade.images.shards import write_store
from drgrade.images.store import CropStore
from drgrade.params import CONTRASTIVE
from drgrade.pretrain import views
from drgrade.pretrain.views import WINDOWS, made

OFF = {
    "flip": 0, "rotation": 0, "scale": [1, 1], "ratio": [1, 1], "translate": 0,
    "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grayscale": 0,
}  # fmt: skip
ALL = CONTRASTIVE.model_dump()
SIZE, PATCH = 96, 32


def coordinates(count=3, size=SIZE):
    """Images that tell where a pixel was: red is x, green is y, blue the number of the image."""
    y, x = np.mgrid[:size, :size]
    return np.stack([np.dstack([x, y, np.full_like(x, 9 + k)]) for k in range(count)]).astype(np.uint8)


def smooth(count=3, size=SIZE):
    """Images without edges; colours from 40 to 215."""
    noise = np.random.default_rng(0).normal(size=(count, size, size, 3))
    waves = np.stack([cv2.GaussianBlur(each, (0, 0), 8) for each in noise])
    return np.uint8(40 + 175 * (waves - waves.min()) / np.ptp(waves))


def task(pairs, seed=0, rows=3, side=10.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, SIZE - side, (pairs, 2))
    boxes = np.hstack([corner, corner + side])
    return rng.integers(0, rows, pairs), boxes, rng.integers(0, 2**63, (pairs, 2))


def both(*task, **options):
    """The views of pairs, made on the training device."""
    return made(move_data_to_device(views.pair_views(*task, **options), device()))


def in_bytes(batch):
    """Views as (2n, P, P, 3) whole numbers."""
    return (batch.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()


@pytest.mark.parametrize("order", ["fused", "published"])
def test_without_changes_views_are_exact_windows_that_hold_their_boxes(order):
    images = coordinates()
    rows, boxes, seeds = task(40)
    batch = both(images, rows, boxes, PATCH, OFF, seeds, order=order)
    assert (batch.shape, batch.dtype) == ((80, 3, PATCH, PATCH), torch.float32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    lefts, tops = in_bytes(batch)[:, 0, 0, :2].astype(int).T
    for k, (left, top) in enumerate(zip(lefts, tops, strict=True)):
        expected = images[rows[k % 40], top : top + PATCH, left : left + PATCH].astype(np.float32) / 255
        np.testing.assert_array_equal(batch[k].permute(1, 2, 0).cpu(), expected)
        x1, y1, x2, y2 = boxes[k % 40]
        assert left <= x1
        assert left + PATCH >= x2
        assert top <= y1
        assert top + PATCH >= y2
    assert (lefts[:40] != lefts[40:]).mean() > 0.8  # the two views of a box have windows of their own


@pytest.mark.parametrize("flips", [{}, {"flip": 0.5}])
@pytest.mark.parametrize("change", [
    ALL, ALL | {"zoom": [0.8, 1.2], "pca": 0.5}, {**OFF, "hue": 0.1, "contrast": 0.4},
    {**OFF, "rotation": 180.0},
])  # fmt: skip
def test_views_are_those_of_the_batched_augmentation(change, flips):
    """Equal draws and equal meaning: bytes instead of floats in between cost less than a grey level."""
    images, (rows, boxes, seeds) = smooth(), task(40)
    change = OFF | change | flips
    windows = both(images, rows, boxes, PATCH, OFF, seeds)
    expected = augment(windows, change, [int(seed) for seed in seeds.T.ravel()], PATCH)
    difference = 255 * (both(images, rows, boxes, PATCH, change, seeds) - expected).abs()
    assert (expected - windows).abs().mean() > 0.01
    assert difference.mean() < 0.5
    assert difference.max() < 4


@pytest.mark.parametrize("change", [{"zoom": [0.9, 1.1]}, {"pca": 0.25}])
def test_zoom_and_colour_noise_are_not_in_the_published_order(change):
    rows, boxes, seeds = task(2)
    with pytest.raises(UserError, match="published order"):
        both(smooth(), rows, boxes, PATCH, ALL | change, seeds, order="published")


def test_flips_are_exact():
    images, (rows, boxes, seeds) = coordinates(), task(20)
    plain = both(images, rows, boxes, PATCH, OFF, seeds)
    flipped = both(images, rows, boxes, PATCH, OFF | {"flip": 1.0}, seeds)
    assert torch.equal(flipped, plain.flip(2, 3))


@pytest.mark.parametrize("order", ["fused", "published"])
@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_a_view_depends_on_its_own_seed_alone(order, window, monkeypatch):
    images, (rows, boxes, seeds) = smooth(), task(12)

    def make(chosen, pairs=seeds):
        return both(
            images, rows[chosen], boxes[chosen], PATCH, ALL, pairs[chosen], order=order, window=window
        )

    together = make(np.arange(12)).view(2, 12, 3, PATCH, PATCH)
    for k in (0, 7):
        assert torch.equal(make([k]), together[:, k])
    backwards = make(np.arange(12)[::-1]).view(2, 12, 3, PATCH, PATCH)
    assert torch.equal(backwards.flip(1), together)
    assert torch.equal(make(np.arange(12), seeds[:, ::-1]).view_as(together).flip(0), together)
    for threads in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        assert torch.equal(make(np.arange(12)).view_as(together), together)


@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_a_store_of_any_lossless_format_gives_the_same_views(tmp_path, window):
    images, (rows, boxes, seeds) = smooth(), task(12)
    expected = both(images, rows, boxes, PATCH, ALL, seeds, window=window)
    for format in ("raw", "png"):
        write_store(images, tmp_path / f"{format}.json", format, shard_bytes=2 * SIZE * SIZE * 3)
        store = CropStore(tmp_path / f"{format}.json")
        assert torch.equal(both(store, rows, boxes, PATCH, ALL, seeds, window=window), expected)


def test_the_published_order_leaves_torch_as_it_was():
    state = torch.get_rng_state()
    both(smooth(), *task(2)[:2], PATCH, ALL, task(2)[2], order="published")
    assert torch.equal(torch.get_rng_state(), state)


@given(st.floats(0, 500), st.floats(1, 128), st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]))
def test_windows_inside_hold_the_box(x, width, chance):
    low, high = min(x, 512 - width), min(x + width, 512)
    box, chances = np.array([[low, low, high, high]]), np.full((1, 2), chance)
    left, top = views.inside(box, 128, 512, chances)[0]
    assert left == top
    assert 0 <= left <= 384
    # a box of nearly 128 px between two pixels cannot be held whole: at most the partial pixel is cut
    assert left <= low + 1
    assert left + 128 >= high - 1


def test_windows_inside_are_uniform():
    boxes = np.tile([200.0, 300.0, 216.0, 316.0], (20_000, 1))
    corners = views.inside(boxes, 128, 512, np.random.default_rng(0).random((20_000, 2)))
    for places, first in zip(corners.T, (88, 188), strict=True):  # x2 - 128 .. x1
        counts = np.bincount(places - first)
        assert len(counts) == 113
        assert counts.min() > 100  # 177 expected at each place


@given(st.integers(0, 511), st.integers(1, 128), st.floats(0, 1, exclude_max=True))
def test_published_windows_step_by_step(x1, width, u):
    """Section 7.1 of the specification, one axis; boxes that touch the edge have the mirrored rule."""
    x2 = min(x1 + width, 512)
    left = views.published(np.array([[x1, x1, x2, x2]], float), 128, 512, np.full((1, 2), u))[0, 0]
    if x2 < 512:
        assert left == x1 - math.floor(u * min(x1, 128 - (x2 - x1)))
    assert 0 <= left <= x1
    assert left + 128 >= x2


def test_published_windows_are_as_black_as_published():
    """Verified figures of the specification, 7.1: boxes of 16 px, anywhere in crops of 512."""
    count = 200_000
    rng = np.random.default_rng(0)

    def beyond(x1):
        y1 = rng.integers(0, 497, count)
        boxes = np.stack([x1, y1, x1 + 16, y1 + 16], axis=1).astype(float)
        return np.maximum(views.published(boxes, 128, 512, rng.random((count, 2))) - 384, 0) / 128

    over = beyond(rng.integers(0, 497, count))
    assert over.any(axis=1).mean() == pytest.approx(0.21, abs=0.01)
    assert (1 - (1 - over).prod(axis=1)).mean() == pytest.approx(0.06, abs=0.006)
    at_the_edge = beyond(np.full(count, 490))[:, 0]
    assert at_the_edge.mean() == pytest.approx(0.4, abs=0.01)
    assert at_the_edge.max() == pytest.approx(0.83, abs=0.005)


def test_beyond_the_crop_it_is_black():
    images = np.full((1, SIZE, SIZE, 3), 200, np.uint8)
    boxes = np.tile([90.0, 88.0, 94.0, 95.0], (30, 1))
    seeds = np.arange(60).reshape(30, 2)
    batch = in_bytes(both(images, np.zeros(30, int), boxes, PATCH, OFF, seeds, window="published"))
    sides = set()
    for view in batch:
        width, height = (view[0, :, 0] == 200).sum(), (view[:, 0, 0] == 200).sum()
        assert (view[:height, :width] == 200).all()
        assert view.sum() == 3 * 200 * width * height
        assert PATCH - width <= 90 + PATCH - SIZE
        sides.add((width, height))
    assert len(sides) > 20


def test_crops_published_and_fused():
    """The published crop rejects areas over 1 and the whole stays in 4 % of draws: mean area 0.873 (7.2)."""
    change = OFF | {"scale": [0.8, 1.2], "ratio": [0.8, 1.2]}
    images, boxes = coordinates(1, 128), np.tile([50.0, 50, 60, 60], (400, 1))
    seeds = np.random.default_rng(0).integers(0, 2**63, (400, 2))
    areas = {}
    for order in ("fused", "published"):
        batch = both(images, np.zeros(400, int), boxes, 128, change, seeds, order=order)
        seen = 255 * batch[:, :2, 32:97, 32:97].cpu().numpy()  # never black: red grows with x, green with y
        width = (seen[:, 0, 32, 64] - seen[:, 0, 32, 0]) / 64
        height = (seen[:, 1, 64, 32] - seen[:, 1, 0, 32]) / 64
        areas[order] = width * height
    assert areas["published"].mean() == pytest.approx(0.873, abs=0.01)
    assert areas["published"].max() < 1.02
    assert (areas["published"] > 0.995).mean() == pytest.approx(0.04, abs=0.02)
    assert areas["fused"].mean() == pytest.approx(1.0, abs=0.015)  # docs/deviations.md: it zooms out
    assert (areas["fused"] > 1.05).mean() == pytest.approx(0.375, abs=0.05)


STATISTICS = {
    "mean": lambda batch: batch.mean(axis=(1, 2)),
    "deviation": lambda batch: batch.std(axis=(1, 2)),
    "black": lambda batch: (batch.max(axis=3) < 0.2).mean(axis=(1, 2)),
    "colour": lambda batch: np.ptp(batch.mean(axis=(1, 2)), axis=1),
}
COLOUR = ("brightness", "contrast", "saturation", "hue", "grayscale")


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 0.4},
        {"contrast": 0.4},
        {"saturation": 0.4},
        {"rotation": 180.0},
        {"translate": 0.2},
        {key: ALL[key] for key in COLOUR},
        ALL | {"scale": [1, 1], "ratio": [1, 1]},
    ],
)
def test_both_orders_have_the_same_distribution(change):
    """Means and deviations of what a view looks like, within four standard errors and a grey level.

    Left out: the crop's areas, see above, and hue by itself, below. Other differences, all listed in
    docs/deviations.md, are smaller than that: colours in any order, clipped after each; nearest neighbours.
    """
    pairs = 250
    images = np.tile(np.uint8([[[[190, 120, 80]]], [[[150, 110, 90]]]]), (1, SIZE, SIZE, 1))
    images[:, 20:76, 20:76] = images[:, 20:76, 20:76] // 2 + 60
    boxes = np.tile([40.0, 40, 50, 50], (pairs, 1))
    seeds = np.random.default_rng(0).integers(0, 2**63, (pairs, 2))
    found = {}
    for order in ("fused", "published"):
        batch = both(images, np.arange(pairs) % 2, boxes, PATCH, OFF | change, seeds, order=order)
        found[order] = {name: of(batch.permute(0, 2, 3, 1).cpu().numpy()) for name, of in STATISTICS.items()}
    for name, ours in found["fused"].items():
        theirs = found["published"][name]
        error = 4 * np.hypot(ours.std(axis=0), theirs.std(axis=0)) / np.sqrt(2 * pairs) + 1 / 255
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all(), name
        assert (np.abs(ours.std(axis=0) - theirs.std(axis=0)) < error).all(), name


def test_hue_published_and_fused():
    """Turned as far, but in another colour space: HSV keeps the largest channel, YIQ keeps the grey."""
    images, boxes = (
        np.full((1, SIZE, SIZE, 3), [190, 120, 80], np.uint8),
        np.tile([40.0, 40, 50, 50], (250, 1)),
    )
    seeds = np.random.default_rng(0).integers(0, 2**63, (250, 2))
    turns, grey, largest = {}, {}, {}
    for order in ("fused", "published"):
        batch = both(images, np.zeros(250, int), boxes, PATCH, OFF | {"hue": 0.1}, seeds, order=order)
        colours = batch[:, :, 0, 0].cpu().numpy()
        hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in colours])
        turns[order] = (hues - 40 / 110 / 6 + 0.5) % 1 - 0.5
        grey[order], largest[order] = np.ptp(colours @ [0.299, 0.587, 0.114]), np.ptp(colours.max(axis=1))
    for turn in turns.values():
        assert turn.mean() == pytest.approx(0, abs=0.015)
        assert turn.std() == pytest.approx(0.2 / np.sqrt(12), abs=0.015)
    assert grey["fused"] < 0.01 < 0.1 < grey["published"]
    assert largest["published"] < 0.01 < 0.1 < largest["fused"]


def test_views_are_normalised_as_other_pictures():
    """Channels last in memory, as views are, or first: the same numbers."""
    batch = both(smooth(), *task(3)[:2], PATCH, ALL, task(3)[2])
    normal = normalise(batch, [0.4, 0.3, 0.2], [0.3, 0.25, 0.2])
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normal, normalise(batch.contiguous(), [0.4, 0.3, 0.2], [0.3, 0.25, 0.2]))
    torch.testing.assert_close(normal[:, 2], (batch[:, 2] - 0.2) / 0.2)


def test_no_boxes():
    nothing = both(smooth(), np.empty(0, int), np.empty((0, 4)), PATCH, ALL, np.empty((0, 2), int))
    assert nothing.shape == (0, 3, PATCH, PATCH)


def test_what_cannot_be():
    rows, boxes, seeds = task(2)
    with pytest.raises(UserError, match=r"patches.size: 97 px are more than the crops have \(96\)"):
        both(smooth(), rows, boxes, 97, ALL, seeds)
    with pytest.raises(ValueError, match="'outside'"):
        both(smooth(), rows, boxes, PATCH, ALL, seeds, window="outside")
    with pytest.raises(ValueError, match="'sorted'"):
        both(smooth(), rows, boxes, PATCH, ALL, seeds, order="sorted")
    with pytest.raises(ValueError, match="2 rows"):
        both(smooth(), rows, boxes, PATCH, ALL, seeds[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_on_the_device(window, monkeypatch):
    images, (rows, boxes, seeds) = smooth(), task(40)
    there = both(images, rows, boxes, PATCH, ALL, seeds, window=window)
    assert there.device.type == "cuda"
    monkeypatch.setattr(views, "device", lambda: torch.device("cpu"))
    here = both(images, rows, boxes, PATCH, ALL, seeds, window=window)
    assert 255 * (there.cpu() - here).abs().mean() < 0.5

import numpy as np
import pytest

from drgrade.explain.overlay import LEVEL_LINE, contact_sheet, legend, overlay, shrunk


def test_cold_places_show_the_photograph_and_hot_ones_do_not():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    heat = np.zeros((60, 90), np.float32)
    heat[40:50, 70:80] = 1
    drawing = overlay(image, heat)
    changed = (drawing != image).any(axis=2)
    assert changed[40:50, 70:80].mean() > 0.95
    assert not changed[heat == 0].any()
    # hot is red: more red than blue is added
    added = drawing[40:50, 70:80].mean(axis=(0, 1)) - image[40:50, 70:80].mean(axis=(0, 1)) / 2
    assert added[0] > added[2] + 30


def test_outline_runs_around_the_lesion():
    image = np.zeros((60, 90, 3), np.uint8)
    lesion = np.zeros((60, 90), bool)
    lesion[20:30, 40:55] = True
    drawing = overlay(image, np.zeros((60, 90)), lesion)
    expected = lesion.copy()
    expected[21:29, 41:54] = False
    np.testing.assert_array_equal((drawing == 255).all(axis=2), expected)


def test_large_photographs_are_drawn_small_and_tiny_lesions_stay_visible():
    image = np.full((400, 800, 3), 50, np.uint8)
    lesion = np.zeros((400, 800), bool)
    lesion[200:202, 600:602] = True
    drawing = overlay(image, np.zeros((400, 800)), lesion, side=100)
    assert drawing.shape == (50, 100, 3)
    assert (drawing[25, 75] == 255).all()


def test_a_line_runs_around_regions_of_a_given_heat():
    image = np.full((60, 90, 3), 200, np.uint8)
    heat = np.full((60, 90), 0.49, np.float32)
    heat[20:40, 30:60] = 0.5
    black = (overlay(image, heat, level=0.5) == LEVEL_LINE).all(axis=2)
    assert black[20, 30:60].all()
    assert black[20:40, 59].all()
    assert not black[23:37, 33:57].any()
    assert not black[~(heat >= 0.5)].any() or black[17:43, 27:63].sum() == black.sum()
    assert not (overlay(image, heat) == LEVEL_LINE).all(axis=2).any()


def test_the_legend_shows_the_scale_and_its_line():
    drawing = legend(4, 0.5)
    assert drawing.shape == (480, 480, 3)
    bar = drawing[230, 40:440].astype(int)
    assert tuple(bar[0]) == (128, 128, 128)  # cold: the photograph's own colour
    assert bar[-9, 0] > bar[-9, 2] + 60  # hot: red
    dark = np.nonzero(bar.max(axis=1) < 30)[0]
    assert dark.min() == pytest.approx(200, abs=2)  # grade 2 of 0-4 in 400 pixels
    labels = (drawing[270:300].min(axis=(0, 2)) < 128).reshape(12, 40).any(axis=1)
    assert labels.sum() >= 5


def test_only_large_images_are_shrunk():
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8)
    assert np.array_equal(shrunk(image, side=80), image)
    small = shrunk(image, side=20)
    np.testing.assert_allclose(small, image.reshape(10, 4, 20, 4, 3).mean(axis=(1, 3)), atol=0.51)


def test_contact_sheet_places_in_reading_order():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    panels = [
        np.full(shape, colour, np.uint8)
        for shape, colour in zip([(10, 20, 3), (40, 20, 3), (30, 30, 3)], colours, strict=True)
    ]
    sheet = contact_sheet(panels, columns=2, cell=20, gap=2)
    assert sheet.shape == (46, 46, 3)
    for (row, column), colour in zip([(12, 12), (12, 34), (34, 12)], colours, strict=True):
        assert tuple(sheet[row, column]) == colour
    assert (sheet[34, 34] == 255).all()
    assert (sheet[3, 12] == 255).all()  # above a wide panel
    assert contact_sheet([], columns=4).min() == 255

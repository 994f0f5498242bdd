import numpy as np

from drgrade.explain.overlay import contact_sheet, overlay


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

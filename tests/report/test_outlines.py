import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from drgrade.images.geometry import CropGeometry
from drgrade.report.outlines import BESIDE, RULE_COLOURS, outline_sheet, outlined, rule_sheet
from drgrade.report.plots import LESION_COLOURS

PHOTOGRAPH = np.zeros((200, 300, 3), np.uint8)


def near(picture, colour):
    """Pixels (rows, columns) of about this colour, some blending allowed."""
    target = np.array([255 * part for part in to_rgb(colour)])
    return np.nonzero(np.abs(picture - target).max(axis=2) < 60)


def extent(picture, colour):
    rows, columns = near(picture, colour)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_box_is_drawn_where_it_is():
    crop = CropGeometry(50, 20, 250, 180, 64)
    picture = outlined(PHOTOGRAPH, {"o_O": crop}, {}, 600)
    assert picture.shape == (400, 600, 3)
    assert extent(picture, RULE_COLOURS["o_O"]) == pytest.approx((100, 40, 500, 360), abs=2)


@pytest.mark.parametrize(("rule", "radius"), [("disc", 100), ("graham", 90), ("clpi", 90)])
def test_circles_are_drawn_at_what_is_kept(rule, radius):
    crop = CropGeometry(60, 0, 260, 200, 64)
    picture = outlined(PHOTOGRAPH, {rule: crop}, {}, 300)
    box = 160 - radius, 100 - radius, 160 + radius, 100 + radius
    assert extent(picture, RULE_COLOURS[rule]) == pytest.approx(box, abs=2)
    rows, columns = near(picture, RULE_COLOURS[rule])
    assert np.abs(np.hypot(rows + 0.5 - 100, columns + 0.5 - 160) - radius).max() < 2


def test_photograph_moves_aside_for_a_box_that_reaches_outside():
    white = np.full((200, 300, 3), 255, np.uint8)
    picture = outlined(white, {"o_O": CropGeometry(0, -50, 300, 250, 64)}, {}, 300)
    assert picture.shape == (300, 300, 3)
    assert (picture[5:45, 5:295] == BESIDE).all()
    assert (picture[255:295, 5:295] == BESIDE).all()
    assert (picture[55:245, 5:295] == 255).all()


def test_contours_lie_on_the_lesions_in_their_colours():
    masks = {code: np.zeros((200, 300), bool) for code in LESION_COLOURS}
    masks["EX"][40:80, 100:160] = True
    masks["MA"][150, 200] = True  # a single pixel of the photograph
    picture = outlined(PHOTOGRAPH, {}, masks, 300)
    assert extent(picture, LESION_COLOURS["EX"]) == pytest.approx((100, 40, 160, 80), abs=1)
    assert not near(picture[45:75, 105:155], LESION_COLOURS["EX"])[0].size
    assert extent(picture, LESION_COLOURS["MA"]) == pytest.approx((200, 150, 201, 151), abs=1)
    assert not near(picture, LESION_COLOURS["SE"])[0].size


def tile(colour):
    return np.full((40, 60, 3), colour, np.uint8)


def test_sheets_show_every_picture_once(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (200, 10, 200), (10, 200, 200)]
    outline_sheet([("name", tile(colour)) for colour in colours], 3, tmp_path / "outlines.png")
    rows = [dict(zip("ab", map(tile, pair), strict=True)) for pair in (colours[:2], colours[2:4])]
    rule_sheet(rows, tmp_path / "rules.png")
    for name, shown in (("outlines", colours), ("rules", colours[:4])):
        sheet = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        areas = [int((np.abs(sheet - colour).max(axis=2) < 5).sum()) for colour in shown]
        assert min(areas) > 10_000, name
        assert max(areas) < 1.05 * min(areas), name

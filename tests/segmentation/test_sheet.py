from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from drgrade.images.geometry import CropGeometry
from drgrade.report.plots import LESION_COLOURS
from drgrade.segmentation.sheet import DIM, Example, contrasted, filled, overlay_sheet, rich_spot

SHAPE = (300, 400)


def mask(*places: tuple[int, int], side: int = 6) -> np.ndarray:
    """Squares with their upper left corner at the places (x, y)."""
    found = np.zeros(SHAPE, bool)
    for x, y in places:
        found[y : y + side, x : x + side] = True
    return found


def rgb(kind: str) -> list[int]:
    return [round(255 * part) for part in to_rgb(LESION_COLOURS[kind])]


def test_the_spot_has_the_most_microaneurysms() -> None:
    masks = {"MA": mask((50, 60), (200, 100), (210, 105), (350, 250)), "EX": mask((20, 200), side=60)}
    x0, y0, x1, y1 = rich_spot(masks, (0, 0, 400, 300))
    assert x1 - x0 == y1 - y0 == 34
    assert masks["MA"][y0:y1, x0:x1].sum() == 2 * 36
    x0, y0, x1, y1 = rich_spot({**masks, "MA": mask()}, (0, 0, 400, 300))
    assert masks["EX"][y0:y1, x0:x1].all(), "without microaneurysms the other lesions"
    assert rich_spot({}, (0, 0, 400, 300)) == (183, 133, 217, 167)


def test_lesions_are_filled_and_microaneurysms_lie_on_top() -> None:
    image = np.full((*SHAPE, 3), (200, 100, 20), np.uint8)
    view = CropGeometry(0, 0, 50, 50, 100)
    masks = {"MA": mask((10, 10)), "HE": mask((8, 8), side=20)}
    drawing = filled(image[:100, :100], masks, view)
    assert drawing[25, 25].tolist() == rgb("MA")
    assert drawing[50, 50].tolist() == rgb("HE")
    assert drawing[80, 80].tolist() == [int(DIM * 100)] * 3
    assert (drawing == rgb("MA")).all(axis=2).sum() == 12 * 12


def test_a_small_lesion_stays_visible_on_the_whole_photograph() -> None:
    view = CropGeometry(0, 0, 400, 400, 40)
    drawing = filled(np.zeros((40, 40, 3), np.uint8), {"MA": mask((205, 105), side=1)}, view)
    assert (drawing == rgb("MA")).all(axis=2).sum() == 9


@pytest.mark.parametrize("spread", [2, 20, 200])
def test_contrast_is_raised_up_to_a_limit(spread: int) -> None:
    rng = np.random.default_rng(0)
    image = (100 + rng.integers(0, spread + 1, (60, 60, 1)) * [0.2, 0.5, 0.1]).astype(np.uint8)
    low, high = np.percentile(contrasted(image)[..., 1], [1, 99])
    before = np.ptp(np.percentile(image[..., 1], [1, 99]))
    assert before <= high - low <= max(before, 111)
    assert high - low == pytest.approx(before if spread == 200 else 3 * before, abs=12)


def test_the_sheet_has_a_row_for_each_photograph(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    masks = {"MA": mask((50, 60)), "EX": mask((200, 100), side=30)}
    example = Example("one", image, masks, {"MA": masks["MA"]}, (20, -10, 380, 310))
    heights = []
    for number in (0, 1, 3):
        overlay_sheet([example] * number, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            width, height = sheet.size
            pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
        assert 1500 < width <= 1600
        heights.append(height)
    assert heights[0] == heights[1] < heights[2]
    yellow = np.abs(pixels.astype(int) - rgb("EX")).max(axis=1) < 3
    assert yellow.sum() > 500

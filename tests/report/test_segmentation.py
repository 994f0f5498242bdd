"""The report's section on lesion segmentation, from metrics as the stage computes them."""

import numpy as np
import pytest
from PIL import Image

from drgrade.report.page import Page
from drgrade.report.segmentation import add_segmentation, kind_table
from drgrade.segmentation.metrics import Pixels, count, segmentation_metrics


def measured(photographs):
    """Metrics of exudates, which a map finds perfectly, and of microaneurysms, which nobody shows."""
    lesion = np.zeros((8, 8), bool)
    lesion[:4] = True
    found = [count(lesion.astype(np.float32), lesion)] * photographs
    nothing = [count(np.zeros((8, 8), np.float32), np.zeros((8, 8), bool))] * photographs
    pixels = {
        kind: Pixels(*map(np.stack, zip(*own, strict=True))) for kind, own in (("MA", nothing), ("EX", found))
    }
    levels = {kind: np.full(photographs, 10) for kind in pixels}
    return segmentation_metrics(pixels, levels, [str(n) for n in range(photographs)], 100)


def test_a_row_for_each_kind_and_their_mean():
    table = kind_table(measured(6)).set_index("lesion")
    assert list(table.index) == ["microaneurysm", "hard exudate", "mean over kinds"]
    exudates = table.loc["hard exudate"]
    assert (exudates["AUPR"], exudates["Dice"], exudates["chance"], exudates["photographs with it"]) == (
        1,
        1,
        0.5,
        6,
    )
    assert exudates["95 % interval"] == "1.000 to 1.000"
    assert np.isnan(table.loc["microaneurysm", "AUPR"])
    assert table.loc["mean over kinds", "AUPR"] == 1


@pytest.mark.parametrize(
    ("test", "words"), [(True, "On 6 test photographs"), (False, "On 6 validation photographs")]
)
def test_the_page_says_which_photographs_and_whether_figures_are_too_good(test, words, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "overlays.png")
    page = Page("title", "notice")
    values = measured(6)
    add_segmentation(page, {"val": values, "test": values if test else None}, tmp_path / "overlays.png")
    text = page.render()
    assert words in text
    assert ("too good" in text) != test
    assert "hard exudate" in text

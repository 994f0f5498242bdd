import cv2
import numpy as np
import pandas as pd
import pytest

from drgrade.report.page import LARGEST, WIDTHS, Page, anchor, cell, embedded, flattened


def test_everything_from_outside_is_escaped():
    evil = '<script>alert("x")</script>'
    page = Page(evil, evil, [evil])
    page.section(evil, evil)
    page.table(pd.DataFrame({evil: [evil], "n": [1]}), evil)
    page.folded(evil, evil)
    html = page.render()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12, "12"), (1.0, "1.000"), (-0.5, "-0.500"), (7, "7"), (None, "–"),
     (float("nan"), "–"),
     (pd.NA, "–"), ("a&b", "a&amp;b")],
)  # fmt: skip
def test_cell(value, text):
    assert cell(value) == text


def test_nested_numbers_become_rows():
    table = flattened({"a": {"b": 1, "c": [2.5, None]}, "d": "x"})
    assert table.fillna("missing").to_numpy().tolist() == [
        ["a.b", 1],
        ["a.c.0", 2.5],
        ["a.c.1", "missing"],
        ["d", "x"],
    ]


def test_anchors_are_words_and_hyphens():
    assert anchor("What the model looks at: 2nd <try>") == "what-the-model-looks-at-2nd-try"


def test_the_summary_is_above_the_contents():
    html = Page("title", "notice", ["finds 9 of 10"]).render()
    assert html.index("notice") < html.index("<li>finds 9 of 10</li>") < html.index("<nav")
    assert 'class="summary"' not in Page("title", "notice").render()


@pytest.mark.parametrize(("side", "kind"), [(100, "png"), (400, "jpeg"), (2400, "jpeg")])
def test_large_images_are_scaled_and_coded_as_jpeg(side, kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), noise)
    found, content = embedded(tmp_path / "image.png")
    shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert found == kind
    assert len(content) <= LARGEST
    assert shown.shape[0] == shown.shape[1] == (side if side <= 400 else shown.shape[0])
    assert shown.shape[1] <= WIDTHS[0]
    if kind == "png":
        assert content == (tmp_path / "image.png").read_bytes()

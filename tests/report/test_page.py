import pandas as pd
import pytest

from drgrade.report.page import Page, cell, flattened


def test_everything_from_outside_is_escaped():
    evil = '<script>alert("x")</script>'
    page = Page(evil, evil)
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

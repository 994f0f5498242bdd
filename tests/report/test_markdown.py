import numpy as np
import pandas as pd
import pytest

from drgrade.report.markdown import between, markdown_table, text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (np.float64(2), "2.000"), (7, "7"), (None, "–"), (np.nan, "–"), (pd.NA, "–"),
     ("a", "a")],
)  # fmt: skip
def test_text(value, shown):
    assert text(value) == shown


def test_a_cell_cannot_break_the_table():
    lines = markdown_table(("a|b", "c"), [("x\ny", 1.0)])
    assert lines == ["| a\\|b | c |", "|---|---|", "| x y | 1.000 |"]


def test_an_interval_that_is_not_known_is_a_dash():
    assert between(0.25, 0.5) == "0.250 to 0.500"
    assert between(np.nan, np.nan) == "–"
    assert between(None, None) == "–"
    assert between(0.5, 1) == "0.500 to 1.000", "a column of a CSV may hold integers only"

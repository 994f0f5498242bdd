"""The pages, from small tables."""

import os
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from drgrade.evaluate.pages import results, write_pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<b>|x"
"""A name that is markup in HTML and in a Markdown table."""
HEAD = [
    "rank", "experiment", "QWK", "95 % interval", "seeds", "p vs best", "accuracy", "referable AUC",
    "sensitivity", "ECE", "weights", "minutes", "peak memory, GB", "images/s", "device",
]  # fmt: skip
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects attributes by tag and the text of each row of a table, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture
def table():
    """Best, another one that may be as good, and a baseline, which never trained."""
    return pd.DataFrame(
        {
            "experiment": ["best", EVIL, "majority"],
            "qwk": [0.8126, 0.8, 0.0],
            "qwk_sd": [0.0104, None, None],
            "qwk_low": [0.7, 0.69, None],
            "qwk_high": [0.9, 0.91, None],
            "seeds": [3, 1, 1],
            "n": [42_670, 42_670, 42_670],
            "patients": [21_335, 21_335, 21_335],
            "p_vs_best_holm": [None, 0.25, 0.0005],
            "accuracy": [0.75, 0.5, 0.25],
            "referable_auc": [0.95, 0.9, None],
            "referable_sensitivity_at_specificity_87": [0.85, 0.8, 0.0],
            "ece": [0.1, 0.2, 0.3],
        }
    )


@pytest.fixture
def costs():
    known = {
        "experiment": [EVIL, "best"],
        "parameters": [11_000_000, 3_371_024],
        "train_minutes": [None, 12.5],
    }
    known |= {
        "peak_memory_gb": [10.25, 1.5],
        "images_per_s": [None, 9.75],
        "device": ["a & b", "cpu, 2 threads"],
    }
    return pd.DataFrame(known).astype({"parameters": "Int64"})


ROWS = [
    ["1", "best", "0.813 ± 0.010", "0.700 to 0.900", "3", "–", "0.750", "0.950", "0.850", "0.100",
     "3,371,024", "12.50", "1.50", "9.8", "cpu, 2 threads"],
    ["2", EVIL, "0.800", "0.690 to 0.910", "1", "0.250", "0.500", "0.900", "0.800", "0.200",
     "11,000,000", "–", "10.25", "–", "a & b"],
    ["3", "majority", "0.000", "–", "1", "<0.001 *", "0.250", "–", "0.000", "0.300", "–", "–", "–", "–", "–"],
]  # fmt: skip


def test_columns_hold_the_text_shown(table, costs):
    columns = results(table, costs)
    assert [column.title for column in columns] == HEAD
    assert [list(row) for row in zip(*(column.texts for column in columns), strict=True)] == ROWS
    assert [column.title for column in columns if not column.numeric] == ["experiment", "device"]


def test_markdown(table, costs, tmp_path):
    write_pages(table, costs, "eyepacs", 2000, tmp_path)
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert lines[0] == "# Leaderboard"
    assert lines[2].startswith("42,670 test photographs of 21,335 patients of the dataset eyepacs. ")
    assert (
        "by a paired bootstrap (2,000 resamples of patients), corrected for 2 comparisons by Holm's method; "
        r"\* marks those below 0.05."
    ) in lines[2]
    assert lines[6] == f"| {' | '.join(HEAD)} |"
    assert lines[7].count("---") == len(HEAD)
    assert lines[9].startswith(r"| 2 | &lt;b&gt;\|x | 0.800 | 0.690 to 0.910 |")
    assert lines[10] == f"| {' | '.join(ROWS[2]).replace('<', '&lt;')} |"
    assert lines[12] == "# Published figures beside ours"
    assert (
        "| RAM | blend of both eyes | eyepacs | private part, 42,670 | QWK | 0.84118 | 0.813 | "
        "README of arXiv 1703.10757 | comparable: same dataset and number of test photographs |"
    ) in lines
    deepmt = next(line for line in lines if "DeepMT-DR" in line and "kappa" in line)
    assert "| kappa, weights not stated | 0.778 | – |" in deepmt


def test_html_holds_the_same_and_loads_nothing(table, costs, tmp_path):
    write_pages(table, costs, "demo", 2000, tmp_path)
    page = Reader((tmp_path / "leaderboard.html").read_text())
    assert page.rows[:4] == [HEAD, *ROWS]
    assert not page.all("b")
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & set(attrs)]
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")
    assert page.all("meta")[2]["content"] == "width=device-width, initial-scale=1"
    headers = [attrs for attrs in page.all("th") if attrs["scope"] == "row"]
    assert [attrs["data-key"] for attrs in headers[:3]] == ["best", EVIL, "majority"]
    assert all(row[-1].startswith("our photographs are synthetic (demo)") for row in page.rows[5:])


def test_a_column_is_sorted_by_a_click_on_its_head(table, costs, tmp_path):
    """By numbers, not by their text; what is missing stays last in both directions."""
    if not CHROMIUM:
        message = "no chromium here: install Debian's package chromium to test the page in a browser"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    write_pages(table, costs, "demo", 2000, tmp_path)
    text = (tmp_path / "leaderboard.html").read_text()
    for place, clicks, order in ((12, 1, "12-"), (12, 2, "21-"), (1, 1, "213"), (6, 1, "321")):
        click = f"document.querySelectorAll('thead button')[{place}].click();" * clicks
        page = tmp_path / f"{place}_{clicks}.html"
        page.write_text(text.replace("</body>", f"<script>{click}</script></body>"))
        shown = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}",
             "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        ranks = [row[0] for row in Reader(shown).rows[1:4]]
        assert ranks == [rank.replace("-", "3") for rank in order], place

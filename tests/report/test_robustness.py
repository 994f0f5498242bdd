"""The report's sections on subgroups and on corrupted photographs, from tables as the stages write them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drgrade.errors import UserError
from drgrade.evaluate.subgroups import COLUMNS
from drgrade.params import Robustness
from drgrade.report.page import Page
from drgrade.report.robustness import add_robustness, add_subgroups
from drgrade.robustness.stage import CLEAN, Condition, robustness_table


def rendered(add, *shown) -> str:
    page = Page("title", "notice")
    add(page, *shown)
    return page.render()


def test_corrupted_photographs_have_a_figure_and_a_row_for_each_condition(tmp_path):
    photographs = pd.DataFrame({"patient_id": [str(n) for n in range(10)], "grade": np.arange(10) % 5})
    truth = photographs["grade"].to_numpy(float)
    conditions = [Condition(CLEAN, 0), Condition("colour_shift", 3)]
    table = robustness_table(photographs, conditions, np.stack([truth, truth / 2]), Robustness(bootstrap=100))
    table.assign(experiment="net").to_csv(tmp_path / "robustness.csv", index=False)
    with pytest.raises(UserError, match=r"robustness\.png: no such file; run the stage robustness"):
        rendered(add_robustness, tmp_path / "robustness.csv", tmp_path / "robustness.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "robustness.png")
    text = rendered(add_robustness, tmp_path / "robustness.csv", tmp_path / "robustness.png")
    assert "The same 10 test photographs of 10 patients" in text
    assert text.count("<img") == 1
    row = text.split('<td class="text">colour shift</td>')[1]
    assert row.startswith("<td>3</td>")
    assert f"{table['drop'].iloc[1]:.3f}" in row
    assert f"{table['drop_low'].iloc[1]:.3f} to {table['drop_high'].iloc[1]:.3f}" in row


def subgroup(dataset: str, experiment: str, value: str, qwk: float, n: int = 20) -> dict[str, object]:
    kind = "site" if value == dataset else "eye"
    found = {"dataset": dataset, "experiment": experiment, "subgroup": kind, "value": value, "n": n}
    return found | {
        "patients": n // 2,
        "referable": 6,
        "qwk": qwk,
        "qwk_low": qwk - 0.1,
        "qwk_high": qwk + 0.1,
    }


def test_subgroups_show_all_experiments_and_the_best_in_detail():
    rows = [
        subgroup("own", "weak", "left", 0.111),
        subgroup("own", "weak", "right", np.nan, n=4),
        subgroup("own", "weak", "own", 0.222),
        subgroup("own", "strong", "left", 0.333),
        subgroup("own", "strong", "right", np.nan, n=4),
        subgroup("own", "strong", "own", 0.444),
        subgroup("other", "weak", "other", 0.999),
        subgroup("other", "strong", "other", 0.555),
    ]
    text = rendered(add_subgroups, pd.DataFrame(rows).reindex(columns=list(COLUMNS)), "strong")
    every, best = text.split("<table>")[1:]
    assert [every.count(value) for value in ("0.111", "0.222", "0.333", "0.444", "0.999", "0.555")] == [1] * 6
    assert (
        every.index(">left<") < every.index(">right<") < every.index(">own</td><td>20") < every.index("0.999")
    )
    assert "The best experiment, strong" in best
    assert "0.344 to 0.544" in best
    assert "0.111" not in best
    assert "nan" not in text


def test_a_table_that_is_missing_is_a_users_mistake(tmp_path):
    with pytest.raises(
        UserError, match=r"robustness\.csv: not a readable table .*; run the stage robustness"
    ):
        rendered(add_robustness, tmp_path / "robustness.csv", tmp_path / "robustness.png")

"""Figures of curves: what is drawn where, also without experiments."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer
from matplotlib.figure import Figure

from drgrade.evaluate.curves import LEARNING_COLUMNS, RELIABILITY_COLUMNS, ROC_COLUMNS
from drgrade.evaluate.decisions import OPERATING_COLUMNS, RISK_COLUMNS
from drgrade.report.curve_plots import (
    COLOURS,
    DASHES,
    learning_chart,
    lines,
    reliability_chart,
    risk_chart,
    roc_chart,
)

TEMPLATES = Path(__file__).parents[2] / ".dvc/plots"
OPERATING = pd.DataFrame(
    [
        {"experiment": "net", "point": point, "sensitivity": 0.75, "specificity": specificity}
        for point, specificity in (("youden", 0.5), ("specificity_87", 0.875))
    ]
).assign(sensitivity_low=0.5, sensitivity_high=1.0, specificity_low=0.75, specificity_high=1.0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def line(axes, label):
    return next(one for one in axes.get_lines() if one.get_label() == label)


def test_roc_curves_with_their_operating_points(drawn, tmp_path):
    table = pd.DataFrame([("net", 0, 0), ("net", 0.25, 1), ("net", 1, 1)], columns=list(ROC_COLUMNS))
    roc_chart(table, OPERATING, "specificity_87", tmp_path / "roc.png")
    (axes,) = drawn[0].axes
    assert line(axes, "net").get_xydata().tolist() == [[0, 0], [0.25, 1], [1, 1]]
    all_points, used, sensitivity, specificity = axes.collections
    assert all_points.get_offsets().tolist() == [[0.5, 0.75], [0.125, 0.75]]
    assert used.get_offsets().tolist() == [[0.125, 0.75]]
    # what matplotlib's hlines and vlines draw: the intervals of the specificity and of the sensitivity
    assert [path.vertices.tolist() for path in sensitivity.get_paths()] == [[[0, 0.75], [0.25, 0.75]]]
    assert [path.vertices.tolist() for path in specificity.get_paths()] == [[[0.125, 0.5], [0.125, 1]]]


def test_reliability_before_and_after_calibration(drawn, tmp_path):
    rows = [("net", "none", 12, 30, 0.8, 0.5), ("net", "calibrated", 9, 10, 0.6, 0.5)]
    other = [("other", "none", 15, 5, 1.0, 0.25)]
    reliability_chart(pd.DataFrame(rows + other, columns=list(RELIABILITY_COLUMNS)), tmp_path / "curve.png")
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("net", "other")
    before, after = first.collections
    assert (before.get_offsets().tolist(), after.get_offsets().tolist()) == ([[0.8, 0.5]], [[0.6, 0.5]])
    assert before.get_sizes()[0] > after.get_sizes()[0]
    assert [len(one.get_offsets()) for one in second.collections] == [1, 0]


def test_learning_curves_have_a_line_for_each_training(drawn, tmp_path):
    rows = [("net", seed, np.nan, epoch, 1 / epoch, epoch / 4) for seed in (0, 1) for epoch in (1, 2)]
    learning_chart(pd.DataFrame(rows, columns=list(LEARNING_COLUMNS)), tmp_path / "learning.png")
    loss, agreement = drawn[0].axes
    assert [one.get_xydata().tolist() for one in loss.get_lines()] == [[[1, 1], [2, 0.5]]] * 2
    assert [one.get_xydata().tolist() for one in agreement.get_lines()] == [[[1, 0.25], [2, 0.5]]] * 2


def test_risk_of_the_accepted(drawn, tmp_path):
    table = pd.DataFrame([("net", 0.5, 0.1), ("net", 1, 0.25)], columns=list(RISK_COLUMNS))
    risk_chart(table, tmp_path / "risk.png")
    assert line(drawn[0].axes[0], "net").get_xydata().tolist() == [[0.5, 0.1], [1, 0.25]]


def test_no_experiment_is_an_empty_figure(tmp_path):
    empty = {
        name: pd.DataFrame(columns=list(columns))
        for name, columns in (
            ("roc", ROC_COLUMNS), ("operating", OPERATING_COLUMNS), ("reliability", RELIABILITY_COLUMNS),
            ("risk", RISK_COLUMNS), ("learning", LEARNING_COLUMNS),
        )
    }  # fmt: skip
    roc_chart(empty["roc"], empty["operating"], "youden", tmp_path / "roc.png")
    reliability_chart(empty["reliability"], tmp_path / "reliability.png")
    risk_chart(empty["risk"], tmp_path / "risk.png")
    learning_chart(empty["learning"], tmp_path / "learning.png")
    assert all(cv2.imread(str(path)) is not None for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_lines_of_many_experiments_differ():
    table = pd.DataFrame({"experiment": [f"e{place}" for place in range(len(COLOURS) * len(DASHES))]})
    styles = [(style["color"], style["linestyle"]) for _, _, style in lines(table)]
    assert len(set(styles)) == len(table)


@pytest.mark.parametrize("template", ["by_experiment", "reliability"])
def test_templates_of_dvc_plots_draw_a_line_for_each_experiment(template):
    points = [
        {"experiment": name, "method": "none", "confidence": 0.5, "accuracy": 0.25, "rev": "workspace"}
        for name in ("one", "two")
    ]
    plot = VegaRenderer(
        points, "plot", template=template, template_dir=str(TEMPLATES), x="confidence", y="accuracy"
    )
    filled = json.loads(plot.partial_html())
    assert filled["data"]["values"] == points
    encoding = filled.get("spec", filled)["encoding"]
    assert (encoding["x"]["field"], encoding["y"]["field"]) == ("confidence", "accuracy")
    assert encoding["color"]["field"] == "experiment"
    assert "<DVC" not in plot.partial_html()

"""Figures of curves, in the style of :mod:`.plots`: ROC, reliability, risk and coverage, learning curves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drgrade.report.plots import BAR, INK, MUTED, figure

COLOURS = ("#0b57a4", "#c2410c", "#0f766e", "#a21caf", "#8a6d00", "#1b2430")
DASHES = ("solid", "dashed", "dotted", "dashdot")
"""The dash changes after all colours have been used: 24 lines can be told apart."""
BEFORE, AFTER = "#c2410c", "#0b57a4"
COLUMNS = 4
"""Panels in a row of a figure."""


def lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Yield each experiment of a table with its rows and the style of its line, in the order of the table."""
    for place, (name, rows) in enumerate(table.groupby("experiment", sort=False)):
        dash = DASHES[place // len(COLOURS) % len(DASHES)]
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": dash, "label": name}
        yield str(name), rows, style


def roc_chart(table: pd.DataFrame, operating: pd.DataFrame, point: str, path: Path) -> None:
    """Write the ROC curves of referable DR, and what the operating points reach on the test photographs.

    Args:
        table: ``roc.csv``.
        operating: ``operating.csv``: its points, chosen on validation photographs, are small circles.
        point: name of the point that is used: a large dot, with its 95 % intervals.
        path: PNG to write.
    """
    with figure(path, 7.5, 5.0) as drawn:
        axes = drawn.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="dotted")
        for name, rows, style in lines(table):
            axes.plot(rows["false_positive_rate"], rows["sensitivity"], linewidth=1.4, **style)
            points = operating[operating["experiment"] == name]
            ring = {"facecolors": "white", "edgecolors": style["color"], "linewidths": 1, "zorder": 3}
            axes.scatter(1 - points["specificity"], points["sensitivity"], s=16, **ring)
            used = points[points["point"] == point]
            axes.scatter(1 - used["specificity"], used["sensitivity"], s=46, color=style["color"], zorder=4)
            cross(axes, used, style["color"])
        axes.set_xlabel("share of other photographs that are called referable (1 - specificity)")
        axes.set_ylabel("share of referable photographs that are called (sensitivity)")
        square(axes)
        legend(axes)


def cross(axes: Axes, used: pd.DataFrame, colour: str) -> None:
    """Draw the 95 % intervals of the sensitivity and specificity of an operating point."""
    thin: Any = {"color": colour, "linewidth": 0.8, "alpha": 0.6}
    axes.hlines(used["sensitivity"], 1 - used["specificity_high"], 1 - used["specificity_low"], **thin)
    axes.vlines(1 - used["specificity"], used["sensitivity_low"], used["sensitivity_high"], **thin)


def reliability_chart(table: pd.DataFrame, path: Path) -> None:
    """Write a panel for each experiment: how often the most probable grade is right, by its probability.

    Args:
        table: ``reliability.csv``; the area of a marker grows with the number of photographs.
        path: PNG to write.
    """
    groups = list(table.groupby("experiment", sort=False))
    styles = {"none": ("before calibration", BEFORE), "calibrated": ("calibrated", AFTER)}
    most = table["n"].max() if len(table) else 1
    with figure(path, *size(len(groups), 2.9)) as drawn:
        grid = panels(drawn, len(groups))
        for axes, (name, rows) in zip(grid, groups, strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="dotted")
            for method, (label, colour) in styles.items():
                part = rows[rows["method"] == method]
                axes.plot(part["confidence"], part["accuracy"], color=colour, linewidth=1, alpha=0.6)
                dots: Any = {"s": 6 + 60 * part["n"] / most, "color": colour, "clip_on": False}
                axes.scatter(part["confidence"], part["accuracy"], label=label, **dots)
            axes.set_title(str(name), fontsize=9)
            square(axes)
        drawn.supxlabel("probability of the most probable grade", fontsize=10)
        drawn.supylabel("how often it is right", fontsize=10)
        if len(groups):
            keys = grid[0].get_legend_handles_labels()
            drawn.legend(*keys, loc="outside upper center", ncols=2, frameon=False, fontsize=8)


def risk_chart(table: pd.DataFrame, path: Path) -> None:
    """Write the share of wrong grades among the most confident photographs.

    Args:
        table: ``risk_coverage.csv``.
        path: PNG to write.
    """
    with figure(path, 7.5, 4.2) as drawn:
        axes = drawn.subplots()
        for _, rows, style in lines(table):
            axes.plot(rows["coverage"], rows["risk"], linewidth=1.4, **style)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=BAR, alpha=0.4, linewidth=0.6)
        axes.set_xlabel("share of photographs accepted, most confident first")
        axes.set_ylabel("share of wrong grades among them")
        legend(axes)


def learning_chart(table: pd.DataFrame, path: Path) -> None:
    """Write a panel for each experiment: training loss and validation QWK after each epoch.

    Args:
        table: ``learning_curves.csv``; a thin line for each training, all of an experiment in one panel.
        path: PNG to write.
    """
    groups = list(table.groupby("experiment", sort=False))
    with figure(path, *size(len(groups), 2.5)) as drawn:
        for axes, (name, rows) in zip(panels(drawn, len(groups)), groups, strict=True):
            right = axes.twinx()
            for _, training in rows.groupby(["seed", "fold"], dropna=False):
                axes.plot(training["epoch"], training["loss"], color=BEFORE, linewidth=1, marker=".")
                right.plot(training["epoch"], training["val_qwk"], color=AFTER, linewidth=1, marker=".")
            axes.set_title(str(name), fontsize=9)
            axes.set_ylim(bottom=min(0, np.nanmin([0, *rows["loss"]])))
            right.set_ylim(min(-0.05, np.nanmin([0, *rows["val_qwk"]])), 1)
            axes.tick_params(axis="y", labelcolor=BEFORE, labelsize=8)
            right.tick_params(axis="y", labelcolor=AFTER, labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.supxlabel("epoch", fontsize=10)
        drawn.suptitle("orange: training loss (left axis)    blue: validation QWK (right axis)", fontsize=9)


def size(count: int, side: float) -> tuple[float, float]:
    """Return width and height in inches of a figure with this number of panels, about ``side`` high each."""
    columns = min(max(count, 1), COLUMNS)
    return max(side * columns, 4.5) + 0.4, side * -(-max(count, 1) // columns) + 0.7


def panels(drawn: Figure, count: int) -> list[Axes]:
    """Return this number of axes, COLUMNS in a row."""
    columns = min(max(count, 1), COLUMNS)
    grid = drawn.subplots(-(-max(count, 1) // columns), columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return list(grid.flat[:count])


def square(axes: Axes) -> None:
    """Show shares from 0 to 1 on both axes, at the same scale."""
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def legend(axes: Axes) -> None:
    """Add a legend to the right of the axes, if they have lines with names."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)

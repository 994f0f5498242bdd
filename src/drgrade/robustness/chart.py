"""The figure of the stage robustness: QWK against severity, a panel for each corruption."""

from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.report.plots import BAR, FROC_LINES, figure

COLUMNS = 3
"""Panels in a row of the figure."""


def robustness_chart(table: pd.DataFrame, path: Path) -> None:
    """Write a panel for each corruption with a line and a 95 % interval for each experiment.

    Args:
        table: experiment, corruption, severity, qwk, qwk_low, qwk_high. Rows of severity 0 are the
            uncorrupted photographs, which every panel starts with; rows without a severity are not drawn.
        path: PNG to write.
    """
    drawn_rows = table[table["severity"].notna()]
    clean = drawn_rows[drawn_rows["severity"] == 0]
    panels = list(drawn_rows.loc[drawn_rows["severity"] > 0, "corruption"].unique())
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with figure(path, 2.7 * columns + 1.6, 2.4 * lines + 0.6) as drawn:
        axes = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        for place, name in zip(axes.flat, panels, strict=False):
            rows = pd.concat([clean, drawn_rows[drawn_rows["corruption"] == name]])
            _panel(place, rows)
            place.set_title(name.replace("_", " "))
        drawn.supxlabel("severity (0: as photographed)", fontsize=10)
        drawn.supylabel("quadratic weighted kappa", fontsize=10)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)


def _panel(axes: Any, rows: pd.DataFrame) -> None:
    """Draw the lines of all experiments."""
    styles = cycle(FROC_LINES.values())
    for (name, own), (colour, marker) in zip(rows.groupby("experiment", sort=False), styles, strict=False):
        own = own.sort_values("severity")
        severity = own["severity"].to_numpy(float)
        axes.plot(severity, own["qwk"], color=colour, marker=marker, markersize=4, label=name)
        axes.fill_between(severity, own["qwk_low"], own["qwk_high"], color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(sorted({0, *map(int, rows["severity"])}))
    axes.grid(axis="y", color=BAR, alpha=0.4, linewidth=0.6)

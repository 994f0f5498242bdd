"""The common figure style, the leaderboard charts and the FROC curves; equal data give identical files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from drgrade.files import atomic_write
from drgrade.schema import GRADES, LESION_NAMES

INK, MUTED, BAR, SEED = "#1b2430", "#5b6572", "#9db8d6", "#c2410c"
LESION_COLOURS = {"MA": "#00e5ff", "HE": "#ffffff", "EX": "#ffe119", "SE": "#ff5cf0"}
"""Visible on the orange fundus, and distinguishable for colour-blind readers."""
FROC_LINES = {
    "all": (INK, "o"),
    "MA": ("#0b57a4", "s"),
    "HE": ("#c2410c", "^"),
    "EX": ("#8a6d00", "D"),
    "SE": ("#a21caf", "v"),
}
"""Colour and marker of each curve; either one alone identifies it."""
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "figure.dpi": 110,
    "savefig.facecolor": "white",
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure (size in inches) in the project's style; it is saved to ``path`` as PNG on exit."""
    with matplotlib.rc_context(STYLE), atomic_write(path) as partial:
        drawn = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
        FigureCanvasAgg(drawn)
        yield drawn
        drawn.savefig(partial, metadata={"Software": None})


def leaderboard_chart(table: pd.DataFrame, seeds: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write a bar chart of QWK with 95 % intervals and a dot for each training seed.

    Args:
        table: experiment, qwk, qwk_low, qwk_high; best first.
        seeds: QWK of each training seed, by experiment.
        path: PNG to write.
    """
    rows = np.arange(len(table))
    value = table["qwk"].to_numpy(float)
    low, high = table["qwk_low"].to_numpy(float), table["qwk_high"].to_numpy(float)
    with figure(path, 7.5, 1.1 + 0.5 * len(table)) as drawn:
        axes = drawn.subplots()
        axes.barh(rows, value, height=0.62, color=BAR)
        axes.hlines(rows, low, high, color=INK, linewidth=1.4, label="95 % interval (patients)")
        dots = [(seed, row) for row, name in enumerate(table["experiment"]) for seed in seeds[name]]
        axes.scatter(
            [dot[0] for dot in dots],
            [dot[1] for dot in dots],
            s=16,
            color=SEED,
            zorder=3,
            label="training seed",
        )
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for row, label in enumerate(value):
            # to the right of the interval and the dots
            edge = np.nanmax([value[row], high[row], *seeds[table["experiment"][row]], 0])
            axes.annotate(f"{label:.3f}", (edge, row), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(rows, table["experiment"])
        axes.invert_yaxis()
        left = min(0.0, float(np.nanmin([*value, *low, *(dot[0] for dot in dots)])))
        axes.set_xlim(left * 1.05, 1.08)
        axes.set_xlabel("quadratic weighted kappa on the test photographs (0: chance, 1: perfect)")
        axes.legend(
            frameon=False,
            fontsize=8,
            loc="lower center",
            ncols=2,
            bbox_to_anchor=(0.5, 1.0),
            borderaxespad=0.2,
        )


def confusion_chart(matrices: Mapping[str, np.ndarray], path: Path, columns: int = 4) -> None:
    """Write confusion matrices side by side, with counts; the shade is the share of the true grade.

    Args:
        matrices: (5, 5) counts by title, true grades in rows.
        path: PNG to write.
        columns: matrices in a row of the figure.
    """
    columns = min(columns, len(matrices))
    lines = -(-len(matrices) // columns)
    with figure(path, 2.7 * columns + 0.3, 2.9 * lines) as drawn:
        axes = drawn.subplots(lines, columns, squeeze=False)
        for place in axes.flat[len(matrices) :]:
            place.set_axis_off()
        for place, (title, matrix) in zip(axes.flat, matrices.items(), strict=False):
            share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            place.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (actual, predicted), count in np.ndenumerate(matrix):
                ink = "white" if share[actual, predicted] > 0.5 else INK
                place.text(
                    predicted, actual, str(int(count)), ha="center", va="center", fontsize=8, color=ink
                )
            place.set_title(title, fontsize=9)
            place.set_xticks(GRADES)
            place.set_yticks(GRADES)
            place.spines[:].set_visible(False)
            place.tick_params(length=0)
        drawn.supxlabel("predicted grade", fontsize=10)
        drawn.supylabel("actual grade", fontsize=10)


def froc_chart(found: Mapping[str, Any], path: Path) -> None:
    """Write the FROC curves of all lesions, with a 95 % interval, and of each kind.

    Args:
        found: ``rates`` and, for ``all`` and each kind, ``boxes``, ``sensitivity``, ``low`` and ``high``, as
            ``val`` in ``metrics.json`` of the stage lesion_metrics. Kinds without boxes are not drawn.
        path: PNG to write.
    """
    rates = np.array(found["rates"])
    with figure(path, 7.5, 4.2) as drawn:
        axes = drawn.subplots()
        for name, (colour, marker) in FROC_LINES.items():
            row = found[name]
            if not row["boxes"]:
                continue
            label = f"{LESION_NAMES.get(name, 'all lesions')} ({row['boxes']})"
            axes.plot(rates, row["sensitivity"], color=colour, marker=marker, markersize=5, label=label)
            if name == "all" and row["low"][0] is not None:
                axes.fill_between(rates, row["low"], row["high"], color=MUTED, alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates, [str(Fraction(rate)) for rate in found["rates"]])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color=BAR, alpha=0.4, linewidth=0.6)
        axes.set_xlabel("false alarms for each photograph")
        axes.set_ylabel("sensitivity")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

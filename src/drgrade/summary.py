"""Summary printed at the end of a run: the leaderboard, and the path of the report."""

import csv
from pathlib import Path


def summary(leaderboard: Path, report: Path) -> list[str]:
    """A line for each experiment, then the paths of both files.

    Args:
        leaderboard: ``leaderboard.csv`` of the stage evaluate; if ``leaderboard.html`` is beside it, the line
            names that. DVC does not restore it.
        report: ``report.html``.

    Returns:
        Lines; none if the leaderboard is not there.
    """
    if not leaderboard.is_file():
        return []
    with leaderboard.open(newline="") as file:
        rows = list(csv.DictReader(file))
    width = max(len("experiment"), *(len(row["experiment"]) for row in rows))
    lines = [f"{'experiment':<{width}}  QWK    95 % interval"]
    lines += [f"{row['experiment']:<{width}}  {_qwk(row)}" for row in rows]
    page = leaderboard.with_suffix(".html")
    return [*lines, f"leaderboard: {page if page.is_file() else leaderboard}", f"report: {report}"]


def _qwk(row: dict[str, str]) -> str:
    """QWK of an experiment, with its interval if there is one."""
    low, high = row["qwk_low"], row["qwk_high"]
    return f"{float(row['qwk']):.3f}" + (f"  {float(low):.3f} to {float(high):.3f}" if low and high else "")

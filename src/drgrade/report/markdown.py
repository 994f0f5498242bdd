"""Tables in Markdown, for the cards."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from drgrade.report.page import MISSING


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table; a float has three decimals, a missing value is a dash."""
    lines = [_line(header), "|" + "---|" * len(header)]
    return [*lines, *(_line([text(value) for value in row]) for row in rows)]


def text(value: Any) -> str:
    """Return a value as text: three decimals for a float, a dash for a missing value."""
    if value is None or pd.isna(value):
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def between(low: float | None, high: float | None) -> str:
    """Return an interval as text, such as ``0.612 to 0.812``; a dash if it is not known."""
    if low is None or high is None or pd.isna(low):
        return MISSING
    return f"{low:.3f} to {high:.3f}"


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"

"""The leaderboard for people: ``leaderboard.md`` and ``leaderboard.html``, with costs and published figures.

Both hold times, which differ from run to run. So DVC does not record them, and no stage reads them.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from drgrade.evaluate.costs import PARAMETERS
from drgrade.evaluate.published import METRICS, beside
from drgrade.files import atomic_write
from drgrade.report.page import STYLE

LEVEL = 0.05
"""p-values below it are called significant."""
MISSING = "–"
COSTS = (
    "The costs are those of one training: the mean over seeds and folds, of memory the highest. "
    "Minutes are wall time. Images/s are training photographs times epochs by that time, validation "
    "included; they are empty where no whole network is trained. A training that was interrupted and resumed "
    "counts in neither of the two. Pretraining, stored features and the experiments that one builds on are "
    "not counted."
)
PUBLISHED = (
    "Published figures are those of the authors, not measured here. Ours is the figure of the best "
    "experiment, {best}. No figure of CLPI is listed, as its result tables could not be read."
)
SORTABLE = """
thead th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit;
                  cursor: pointer; }
thead th[aria-sort=ascending] button::after { content: " \\25B2"; }
thead th[aria-sort=descending] button::after { content: " \\25BC"; }
body { max-width: 96rem; }
p { max-width: 68rem; }
tbody th { position: sticky; left: 0; background: #fff; }
td:not(.text) { white-space: nowrap; }
td.text:nth-child(2), td.text:last-child { min-width: 12rem; }
@media (max-width: 40rem) { body { padding: .5rem .75rem 3rem; } th, td { padding: .3rem .4rem; } }
"""
"""Added to the style of the report."""
SCRIPT = """
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].dataset.key;
    const numeric = [...body.rows].every(row => !isNaN(key(row)));
    const compare = (a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b);  // missing values last
      return sign * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b)));
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""
"""Sorts a table by the column whose head is clicked, the second time in descending order."""


class Column(NamedTuple):
    """A column of a table: title, text of each cell, and the value by which its row is sorted."""

    title: str
    texts: Sequence[str]
    keys: Sequence[float | str | None]

    @property
    def numeric(self) -> bool:
        """Whether it is sorted by numbers."""
        return not any(isinstance(key, str) for key in self.keys)


class Section(NamedTuple):
    """A title, paragraphs, and a table of which the column ``head`` names the rows."""

    title: str
    paragraphs: Sequence[str]
    columns: Sequence[Column]
    head: int = 0


def numbers(title: str, values: pd.Series, form: str) -> Column:
    """A column of numbers, each shown in a format such as ``.3f``."""
    keys = [None if pd.isna(value) else float(value) for value in values]
    whole = form.endswith("d")
    texts = [MISSING if key is None else format(int(key) if whole else key, form) for key in keys]
    return Column(title, texts, keys)


def words(title: str, values: pd.Series) -> Column:
    """A column of text."""
    keys = [None if pd.isna(value) else str(value) for value in values]
    return Column(title, [MISSING if key is None else key for key in keys], keys)


def write_pages(table: pd.DataFrame, costs: pd.DataFrame, dataset: str, resamples: int, out: Path) -> None:
    """Write ``leaderboard.md`` and ``leaderboard.html``.

    Args:
        table: the leaderboard, best experiment first.
        costs: see :func:`drgrade.evaluate.costs.training_costs`.
        dataset: name of the dataset tested on.
        resamples: bootstrap resamples of the intervals and p-values.
        out: folder to write to.
    """
    best = table.iloc[0]
    figures = beside(dataset, int(best["n"]))
    about = explanation(table, dataset, resamples)
    sections = [
        Section("Leaderboard", [about, COSTS], results(table, costs), head=1),
        Section("Published figures beside ours", [PUBLISHED.format(best=best["experiment"])],
                published(figures, best)),
    ]  # fmt: skip
    for name, content in (("md", markdown(sections)), ("html", html(sections))):
        with atomic_write(out / f"leaderboard.{name}") as partial:
            partial.write_text(content)


def explanation(table: pd.DataFrame, dataset: str, resamples: int) -> str:
    """Return the first paragraph of the leaderboard: the test, the metrics, and how p was computed."""
    best = table.iloc[0]
    return (
        f"{best['n']:,} test photographs of {best['patients']:,} patients of the dataset {dataset}. "
        "QWK is quadratic weighted kappa, the mean ± standard deviation over training seeds; "
        "its interval is the 95 % bootstrap interval over patients. "
        "p is the two-sided p-value of the QWK difference from the best row, by a paired bootstrap "
        f"({resamples:,} resamples of patients), corrected for {len(table) - 1} comparisons by Holm's "
        f"method; * marks those below {LEVEL:g}. "
        "Referable is grade 2 or higher; sensitivity is the highest at a specificity of at least 0.87; "
        "ECE is the expected calibration error before calibration."
    )


def results(table: pd.DataFrame, costs: pd.DataFrame) -> list[Column]:
    """Return the columns of the leaderboard as shown, costs at the end."""
    known = costs.set_index("experiment").reindex(table["experiment"]).reset_index()
    return [
        numbers("rank", pd.Series(range(1, len(table) + 1)), "d"),
        words("experiment", table["experiment"]),
        _with_spread(table),
        _interval(table),
        numbers("seeds", table["seeds"], "d"),
        _p_values(table["p_vs_best_holm"]),
        numbers("accuracy", table["accuracy"], ".3f"),
        numbers("referable AUC", table["referable_auc"], ".3f"),
        numbers("sensitivity", table["referable_sensitivity_at_specificity_87"], ".3f"),
        numbers("ECE", table["ece"], ".3f"),
        numbers("weights", known[PARAMETERS], ",d"),
        numbers("minutes", known["train_minutes"], ".2f"),
        numbers("peak memory, GB", known["peak_memory_gb"], ".2f"),
        numbers("images/s", known["images_per_s"], ".1f"),
        words("device", known["device"]),
    ]


def _with_spread(table: pd.DataFrame) -> Column:
    """QWK with its standard deviation, which a single seed does not have."""
    means = numbers("QWK", table["qwk"], ".3f")
    spread = numbers("", table["qwk_sd"], ".3f").texts
    texts = [one if sd == MISSING else f"{one} ± {sd}" for one, sd in zip(means.texts, spread, strict=True)]
    return means._replace(texts=texts)


def _interval(table: pd.DataFrame) -> Column:
    """Interval of QWK, sorted by its lower end."""
    low, high = (numbers("95 % interval", table[f"qwk_{end}"], ".3f") for end in ("low", "high"))
    ends = zip(low.texts, high.texts, strict=True)
    return low._replace(texts=[one if one == MISSING else f"{one} to {other}" for one, other in ends])


def _p_values(values: pd.Series) -> Column:
    """p-values, an asterisk beside those below LEVEL."""
    column = numbers("p vs best", values, ".3f")
    small, significant = values < 0.001, values < LEVEL  # False where there is none
    texts = [
        ("<0.001" if tiny else text) + (" *" if marked else "")
        for text, tiny, marked in zip(column.texts, small, significant, strict=True)
    ]
    return column._replace(texts=texts)


def published(figures: pd.DataFrame, best: pd.Series) -> list[Column]:
    """Return the columns of the published figures as shown, with those of the best experiment.

    Args:
        figures: see :func:`drgrade.evaluate.published.beside`.
        best: first row of the leaderboard.
    """
    ours = pd.Series([best[METRICS[name]] if name in METRICS else None for name in figures["metric"]])
    return [
        words("system", figures["system"]),
        words("method", figures["method"]),
        words("dataset", figures["dataset"]),
        words("test photographs", figures["test"]),
        words("metric", figures["metric"]),
        numbers("published", figures["value"], ".5g"),
        numbers("ours", ours, ".3f"),
        words("source", figures["source"]),
        words("not comparable because", figures["not_comparable"]),
    ]


def markdown(sections: Sequence[Section]) -> str:
    """Return the sections as a Markdown document; text from outside cannot become markup."""
    return "\n".join(_markdown(section) for section in sections)


def _markdown(section: Section) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(escape(cell, quote=False).replace('|', chr(92) + '|') for cell in cells)} |"

    columns = section.columns
    rule = ["---:" if column.numeric else "---" for column in columns]
    rows = [line(cells) for cells in zip(*(column.texts for column in columns), strict=True)]
    head = line([column.title for column in columns])
    texts = [escape(text, quote=False).replace("*", r"\*") + "\n" for text in section.paragraphs]
    return "\n".join([f"# {section.title}\n", *texts, head, line(rule), *rows, ""])


def html(sections: Sequence[Section]) -> str:
    """Return the sections as a document with sortable tables that loads nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    body = "\n".join(
        f"<section><h2>{escape(section.title)}</h2>\n"
        + "".join(f"<p>{escape(text)}</p>\n" for text in section.paragraphs)
        + f"{_table(section)}</section>"
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Leaderboard</title>\n<style>{STYLE}{SORTABLE}</style>\n</head>\n<body>\n"
        "<header><h1>Grading diabetic retinopathy: leaderboard</h1>\n"
        "<p>Click the head of a column to sort by it.</p></header>\n"
        f"<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(section: Section) -> str:
    kinds = ["" if column.numeric else ' class="text"' for column in section.columns]
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{escape(column.title)}</button></th>'
        for column, kind in zip(section.columns, kinds, strict=True)
    )
    rows = range(len(section.columns[0].texts))
    body = "\n".join(f"<tr>{''.join(_cells(section, kinds, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(section.title)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cells(section: Section, kinds: Sequence[str], row: int) -> list[str]:
    """The cells of a row in HTML, each with the key to sort by; the one that names the row is its header."""
    cells = []
    for place, (column, kind) in enumerate(zip(section.columns, kinds, strict=True)):
        tag, scope = ("th", ' scope="row"') if place == section.head else ("td", "")
        key = "" if column.keys[row] is None else escape(str(column.keys[row]))
        cells.append(f'<{tag}{scope}{kind} data-key="{key}">{escape(column.texts[row])}</{tag}>')
    return cells

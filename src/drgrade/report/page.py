"""The report page: a self-contained HTML file without scripts, external files or network access."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Number
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

MISSING = "–"
LARGEST = 250_000
"""Size in bytes above which an image is embedded as JPEG, scaled down until it is smaller."""
WIDTHS = (1600, 1200, 900, 600, 400)
"""Widths in pixels that are tried for it."""
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b2430; background: #fff;
       max-width: 68rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 2px solid #d7dee6; padding-bottom: .25rem; }
a { color: #0b57a4; }
.summary { border: 1px solid #d7dee6; border-radius: .4rem; background: #f4f8fc; padding: .4rem 1rem; }
.summary h2 { border: 0; margin: .4rem 0 0; }
.summary ul { margin: .3rem 0 .6rem; padding-left: 1.2rem; }
.summary li { margin: .25rem 0; }
.notice { background: #fff4e0; border-left: 4px solid #b45309; padding: .6rem .9rem; }
nav ol { columns: 2; padding-left: 1.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; white-space: nowrap; color: #46515e; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d7dee6; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tbody th, td.text { min-width: 7.5rem; }
thead th { border-bottom: 2px solid #5b6572; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #46515e; max-width: 50rem; }
details { margin: .4rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
@media (max-width: 40rem) {
  body { padding: .5rem .75rem 3rem; } h1 { font-size: 1.4rem; } nav ol { columns: 1; }
  th, td { padding: .3rem .4rem; }
}
"""


@dataclass
class Page:
    """Collects sections and renders them.

    Attributes:
        title: title of the page.
        notice: a line shown prominently at the top.
        summary: the most important results, one sentence or two each, shown above the table of contents.
    """

    title: str
    notice: str
    summary: list[str] = field(default_factory=list)
    _sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str, text: str = "") -> None:
        """Start a section; what is added next belongs to it."""
        self._sections.append((title, [f"<p>{escape(text)}</p>"] if text else []))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add(f"<p>{escape(text)}</p>")

    def link(self, text: str, target: str) -> None:
        """Add a link to another file, given by its path relative to the page's."""
        self._add(f'<p><a href="{escape(target, quote=True)}">{escape(text)}</a></p>')

    def _add(self, html: str) -> None:
        self._sections[-1][1].append(html)

    def table(self, table: pd.DataFrame, caption: str) -> None:
        """Add a table whose first column holds row headers; a missing value is shown as a dash."""
        numeric = [all(isinstance(value, Number) for value in table[name].dropna()) for name in table.columns]
        kind = ["" if is_number else ' class="text"' for is_number in numeric]
        head = "".join(
            f'<th scope="col"{css}>{escape(str(name).replace("_", " "))}</th>'
            for name, css in zip(table.columns, kind, strict=True)
        )
        lines = []
        for row in table.itertuples(index=False):
            cells = [cell(value) for value in row]
            rest = "".join(f"<td{css}>{text}</td>" for text, css in zip(cells[1:], kind[1:], strict=True))
            lines.append(f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>')
        self._add(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}">'
            f"<table><caption>{escape(caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def image(self, path: Path, alt: str, caption: str) -> None:
        """Embed a PNG, with an alternative text for screen readers and a caption; see :func:`embedded`."""
        kind, content = embedded(path)
        data = base64.b64encode(content).decode()
        self._add(
            f'<figure><img alt="{escape(alt, quote=True)}" src="data:image/{kind};base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def folded(self, title: str, text: str) -> None:
        """Add preformatted text that is collapsed until the title is clicked."""
        self._add(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")

    def render(self) -> str:
        """Return the whole document as HTML that loads no external resources."""
        names = [anchor(title) for title, _ in self._sections]
        links = "".join(
            f'<li><a href="#{name}">{escape(title)}</a></li>'
            for name, (title, _) in zip(names, self._sections, strict=True)
        )
        body = "\n".join(
            f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n'
            + "\n".join(parts)
            + "</section>"
            for name, (title, parts) in zip(names, self._sections, strict=True)
        )
        # With this policy the browser allows embedded images only, and no scripts.
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<header><h1>{escape(self.title)}</h1>\n<p class="notice">{escape(self.notice)}</p></header>\n'
            f"{self._box()}"
            f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
        )

    def _box(self) -> str:
        """The summary as HTML; empty if there is none."""
        if not self.summary:
            return ""
        items = "".join(f"<li>{escape(text)}</li>" for text in self.summary)
        return (
            '<section class="summary" aria-labelledby="summary"><h2 id="summary">In short</h2>'
            f"<ul>{items}</ul></section>\n"
        )


def anchor(title: str) -> str:
    """Return the anchor of a section: its title in lower case, words joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def embedded(path: Path) -> tuple[str, bytes]:
    """Return the format and content by which a PNG is embedded.

    Returns:
        ``png`` and the file as it is, if it has at most LARGEST bytes; else ``jpeg`` and the image in the
        first of WIDTHS in which it has, or in the last.
    """
    content = path.read_bytes()
    if len(content) <= LARGEST:
        return "png", content
    image = np.asarray(cv2.imread(str(path)))
    for width in WIDTHS:
        scale = min(1.0, width / image.shape[1])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        if len(content) <= LARGEST:
            break
    return "jpeg", content


def cell(value: Any) -> str:
    """Return the text of a table cell: three decimals for a float, a dash for a missing value."""
    if pd.isna(value):
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def flattened(values: Mapping[str, Any], prefix: str = "") -> pd.DataFrame:
    """Flatten nested values to a table (name, value): ``{'a': {'b': 1}}`` becomes the row ``a.b, 1``."""
    rows: list[tuple[str, Any]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for place, item in enumerate(value):
                walk(item, f"{name}.{place}")
        else:
            rows.append((name, value))

    walk(values, prefix)
    return pd.DataFrame(rows, columns=["name", "value"], dtype=object)

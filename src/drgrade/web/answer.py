"""What the web page says about a photograph, in words and bars."""

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

from drgrade.evaluate.fits import NONE, Fit
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.images.prepare import FAILED
from drgrade.params import Calibrate
from drgrade.predict.table import QUALITY
from drgrade.schema import GRADE_NAMES

Row = Mapping[Any, Any]
"""A row of predictions, with the columns of :data:`drgrade.predict.table.COLUMNS`."""
MEASURES = {"fov": "field of view", "sharpness": "sharpness", "exposure": "exposure", "contrast": "contrast"}
"""The parts of the quality in words, by column."""


def headline(row: Row) -> str:
    """Return the grade of a photograph, or why it has none."""
    if pd.isna(row["grade"]):
        status = "this file cannot be read" if row["status"] == FAILED else row["status"]
        return f"Not graded: {status}: {row['reason']}"
    name = "no" if row["grade"] == 0 else row["name"]
    return f"Grade {row['grade']}: {name} retinopathy"


def facts(row: Row, fit: Fit, params: Calibrate) -> dict[str, str]:
    """Return what was predicted and decided about a graded photograph, a line for each question.

    Args:
        row: its prediction.
        fit: what the model's decisions follow from; where something is missing, the line says why.
        params: operating point, coverage and largest size of the sets of grades.
    """
    return {
        "Expected grade": f"{row['score']:.2f}, from 0 (no retinopathy) to 4 (proliferative)",
        "Referable (grade 2 or higher)": _referable(row, fit, params),
        "Likely grades": _likely(row, fit, params),
        "Leave to a clinician": _abstain(row, params),
        "Probabilities": _calibration(fit, params),
    }


def as_html(row: Row, fit: Fit, params: Calibrate, notes: Mapping[str, str]) -> str:
    """Return the answer for one photograph as HTML: headline, facts, bars, and notes by title.

    All text is escaped. A photograph that was not graded has the headline, and its quality if it was read.
    """
    parts = [f"<h2>{escape(headline(row))}</h2>"]
    if not pd.isna(row["grade"]):
        grades = {f"{grade} {name}": row[PROBABILITIES[grade]] for grade, name in enumerate(GRADE_NAMES)}
        parts += [bars("Probability of each grade", grades), _list({**facts(row, fit, params), **notes})]
    if not pd.isna(row["quality"]):
        lowest = min(MEASURES, key=lambda name: row[name])
        title = f"Quality of the photograph: {row[QUALITY[0]]:.2f}, the lowest part is {MEASURES[lowest]}"
        parts.append(bars(title, {MEASURES[name]: row[name] for name in MEASURES}))
    return "\n".join(parts)


def bars(title: str, values: Mapping[str, float]) -> str:
    """Return an HTML table with a bar for each value, 0 to 1, under a title."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><div style='width:{100 * value:.1f}%'></div></td>"
        f"<td>{value:.2f}</td></tr>"
        for name, value in values.items()
    )
    return f"<table class='bars'><caption>{escape(title)}</caption>{rows}</table>"


def _referable(row: Row, fit: Fit, params: Calibrate) -> str:
    probability = f"probability {row['p_referable']:.2f}"
    if pd.isna(row["referable"]):
        return f"{probability}; not decided: {fit.reasons.get('points', 'no operating point')}"
    threshold = f"threshold {fit.points[params.point].threshold:.2f} (operating point {params.point})"
    return f"{'yes' if row['referable'] else 'no'}: {probability}, {threshold}"


def _likely(row: Row, fit: Fit, params: Calibrate) -> str:
    if pd.isna(row["grades"]):
        return f"not known: {fit.reasons.get('points', 'no sets of grades were fitted')}"
    grades = row["grades"] or "none of the five"
    return f"{grades}; such sets hold the true grade of {1 - params.alpha:.0%} of photographs"


def _abstain(row: Row, params: Calibrate) -> str:
    if pd.isna(row["abstain"]):
        return "not decided, as the likely grades are not known"
    answer = "yes: the likely grades are more than" if row["abstain"] else "no: the likely grades are at most"
    return f"{answer} {params.max_grades}"


def _calibration(fit: Fit, params: Calibrate) -> str:
    if fit.method != NONE:
        return f"calibrated ({fit.method})"
    return f"not calibrated: {fit.reasons.get(params.method, 'calibrate.method is none')}"


def _list(items: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in items.items())
    return f"<dl>{rows}</dl>"

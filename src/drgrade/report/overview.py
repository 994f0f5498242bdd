"""The report's first box: what was trained on what, and how good the best experiment is, in plain words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from drgrade.report.decisions import point_text
from drgrade.report.inputs import grade_counts
from drgrade.report.model_card import SCHEMES, resolved, scheme_of, start
from drgrade.report.page import MISSING

PARTS = {
    "train": "for training",
    "val": "for validation",
    "test": "for testing",
    "left out": "left out",
}
"""What the splits of an index are for."""


def best_experiment(metrics: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the best experiment, and whether it was chosen by its QWK on validation photographs.

    If nothing was held out for validation, it is the one with the highest QWK on test photographs.

    Args:
        metrics: ``metrics.json``.
        params: all params; the baselines that are in every leaderboard are not among its experiments.
    """
    for key in ("val_qwk", "qwk"):
        known = {name: metrics[name].get(key) for name in params["experiments"]}
        values = {name: value for name, value in known.items() if value is not None}
        if values:
            return max(values, key=lambda name: values[name]), key == "val_qwk"
    return next(iter(params["experiments"])), False


def summary(
    index: pd.DataFrame, metrics: Mapping[str, Any], operating: pd.DataFrame, params: Mapping[str, Any]
) -> list[str]:
    """Return the paragraphs of the box.

    Args:
        index: ``index.parquet`` of the graded dataset.
        metrics: ``metrics.json``.
        operating: ``operating.csv``.
        params: all params, with defaults filled in.
    """
    best, validated = best_experiment(metrics, params)
    lines = [data_text(index, params), model_text(best, validated, params), agreement_text(metrics[best])]
    used = operating[(operating["experiment"] == best) & (operating["point"] == params["calibrate"]["point"])]
    if len(used):
        lines.append(referral_text(used.iloc[0]))
    return [*lines, "Research use, not a diagnosis: the figures hold for photographs like these only."]


def data_text(index: pd.DataFrame, params: Mapping[str, Any]) -> str:
    """Say which photographs were used: how many, of how many patients, and for what."""
    name, scheme = params["roles"]["grade"], scheme_of(params)
    counts = grade_counts(index)
    total = f"{counts['photographs'].sum():,} graded photographs"
    if scheme == "kfold":
        return f"Data: {total} of the dataset {name}. {SCHEMES[scheme].capitalize()}."
    rows = {row.split: row for row in counts.itertuples()}
    parts = [
        f"{rows[split].photographs:,} of {rows[split].patients:,} patients {purpose}"
        for split, purpose in PARTS.items()
        if split in rows
    ]
    return f"Data: {total} of the dataset {name}: {', '.join(parts)}. Split: {SCHEMES[scheme]}."


def model_text(best: str, validated: bool, params: Mapping[str, Any]) -> str:
    """Say which experiment is the best, how it was chosen, and what kind of model it is."""
    experiment = resolved(best, params)
    kind = f"grader {experiment['grader']}"
    if "encoder" in experiment:
        kind += f", encoder {experiment['encoder']}, start weights: {start(experiment, params)}"
    if validated:
        return f"Best on the validation photographs: {best} ({kind})."
    return (
        f"Highest on the test photographs: {best} ({kind}). Nothing was held out for validation, so that it "
        "was chosen on the photographs that it is measured on: its figures are a little too good."
    )


def agreement_text(values: Mapping[str, Any]) -> str:
    """Say how well the predicted grades agree with the true ones on the test photographs."""
    between = ""
    if values["qwk_low"] is not None:
        between = f"95 % interval {values['qwk_low']:.2f} to {values['qwk_high']:.2f}; "
    return (
        f"On {values['n']:,} test photographs of {values['patients']:,} patients, its quadratic weighted "
        f"kappa is {values['qwk']:.2f} ({between}0: chance, 1: perfect); "
        f"{100 * values['accuracy']:.0f} of 100 grades are exactly right."
    )


def referral_text(row: pd.Series) -> str:
    """Say what the operating point that is used means for referable and other photographs.

    Args:
        row: row of ``operating.csv``.
    """
    found, least, most = (100 * row[f"sensitivity{end}"] for end in ("", "_low", "_high"))
    passed, low, high = (100 * row[f"specificity{end}"] for end in ("", "_low", "_high"))
    return (
        f"Referral (grade 2 or higher), with a threshold chosen on validation photographs "
        f"({point_text(row['point'])}): it finds {_number(found)} of 100 referable test photographs "
        f"(95 % interval {_number(least)} to {_number(most)}), and refers {_number(100 - passed)} of 100 "
        f"others as well ({_number(100 - high)} to {_number(100 - low)})."
    )


def _number(value: float) -> str:
    """A whole number; a dash for a missing one."""
    return MISSING if pd.isna(value) else f"{value:.0f}"

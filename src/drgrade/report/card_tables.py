"""Tables of a model card: metrics, calibration, operating points, subgroups and external datasets."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from drgrade.report.decisions import UNDECIDED, point_text, rates
from drgrade.report.markdown import between, markdown_table, text
from drgrade.report.tables import Results, intervals
from drgrade.schema import GRADE_NAMES

METRICS = {
    "qwk": "Quadratic weighted kappa (QWK)",
    "qwk_fitted": "QWK, thresholds fitted on validation photographs",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "mae": "Mean absolute error, grades",
    "macro_auroc": "Mean AUC of the grades, one against all others",
    "referable_auc": "Referable DR (grade 2 or more): AUC",
    "referable_sensitivity": "Referable DR: sensitivity, score of 1.5 or more",
    "referable_specificity": "Referable DR: specificity",
    "sight_threatening_auc": "Sight-threatening DR (grade 3 or more): AUC",
}


def analyses(name: str, results: Results, point: str) -> list[str]:
    """Return the lines on the results of an experiment, each table with a heading.

    Args:
        name: name of the experiment.
        results: of the stage evaluate.
        point: name of the operating point that is used.
    """
    tables, metrics = results.tables, results.metrics[name]
    operating, external, subgroups = (
        rows[rows["experiment"] == name]
        for rows in (tables["operating"], tables["external"], tables["subgroups"])
    )
    parts = {
        "On the test photographs": measured(metrics),
        "Calibration and operating points": decisions(metrics, operating, point),
        "Subgroups": by_subgroup(subgroups),
    }
    if len(external):
        parts["On other datasets"] = elsewhere(external)
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items()).split("\n")


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """Return the tables of all metrics with intervals, by grade and by seed."""
    ends = {row["metric"]: (row["low"], row["high"]) for row in metrics["intervals"]}
    values = []
    for key, title in METRICS.items():
        low, high = ends.get(key, (metrics.get(f"{key}_low"), metrics.get(f"{key}_high")))
        values.append((title, metrics[key], between(low, high)))
    grades = [
        (
            f"{row['grade']} {GRADE_NAMES[row['grade']]}",
            row["n"],
            row["recall"],
            ", ".join(f"{count:.3g}" for count in row["predicted"]),
        )
        for row in metrics["grades"]
    ]
    seeds = [(str(row["seed"]), row["qwk"]) for row in metrics["seeds"]]
    return [
        *markdown_table(("metric", "value", "95 % interval"), values),
        "",
        *markdown_table(
            ("grade", "photographs", "recall", "graded as 0, 1, 2, 3, 4 (mean of the seeds)"), grades
        ),
        "",
        *markdown_table(("seed", "QWK"), seeds),
        "",
        f"Standard deviation of the QWK over seeds: {text(metrics['qwk_sd'])}. "
        f"QWK on validation photographs: {text(metrics['val_qwk'])}.",
    ]


def decisions(metrics: Mapping[str, Any], operating: pd.DataFrame, point: str) -> list[str]:
    """Return the tables of calibration and of operating points.

    Args:
        metrics: entry of ``metrics.json``.
        operating: rows of ``operating.csv`` of the experiment.
        point: name of the operating point that is used.
    """
    calibrated = [
        (row["method"], row["ece"], row["brier"], row["reason"] or "") for row in metrics["calibration"]
    ]
    lines = [
        "Error of the probabilities of the grades, before calibration (none) and after each method: expected "
        "calibration error of the most probable grade, and Brier score (0 to 2). 0 is best.",
        "",
        *markdown_table(("method", "calibration error", "Brier score", "why not fitted"), calibrated),
        "",
    ]
    if operating.empty:
        return [*lines, UNDECIDED]
    method = operating["calibration"].iloc[0]
    calibrated_by = "not calibrated" if method == "none" else f"calibrated by the method {method}"
    return [
        *lines,
        "Detection of referable DR, measured on test photographs; the point that is used: "
        f"{point_text(point)}. Thresholds are on its probability, {calibrated_by}.",
        "",
        *frame(rates(operating).drop(columns="experiment")),
    ]


def by_subgroup(subgroups: pd.DataFrame) -> list[str]:
    """Return the table of results by subgroup; columns as in ``subgroups.csv``."""
    shown = {
        "dataset": subgroups["dataset"],
        "subgroup": subgroups["subgroup"],
        "value": subgroups["value"],
        "photographs": subgroups["n"],
        "patients": subgroups["patients"],
        "QWK": subgroups["qwk"],
        "95 % interval": intervals(subgroups, "qwk"),
        "sensitivity": subgroups["referable_sensitivity"],
        "specificity": subgroups["referable_specificity"],
    }
    return [
        *frame(pd.DataFrame(shown)),
        "",
        "Sensitivity and specificity are of referable DR, score of 1.5 or more. Grades are distributed "
        "differently in each subgroup, so that a difference need not come from what names it. Subgroups with "
        "too few photographs have counts only.",
    ]


def elsewhere(external: pd.DataFrame) -> list[str]:
    """Return the table of results on external datasets; columns as in ``external.csv``."""
    shown = {
        "dataset": external["dataset"],
        "photographs": external["n"],
        "patients": external["patients"],
        "QWK": external["qwk"],
        "95 % interval": intervals(external, "qwk"),
        "drop": external["drop"],
        "referable AUC": external["referable_auc"],
    }
    return [*frame(pd.DataFrame(shown)), "", "Drop: the QWK on the own test photographs minus that on these."]


def frame(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table with the names of its columns."""
    return markdown_table(list(table.columns), table.itertuples(index=False))

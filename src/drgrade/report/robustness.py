"""The report's sections on subgroups of the test photographs, and on corrupted ones."""

from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.report.page import Page
from drgrade.report.tables import intervals, read_csv


def add_robustness(page: Page, table: Path, figure: Path) -> None:
    """Add a section on corrupted test photographs.

    Args:
        page: report page to extend.
        table: ``robustness.csv``.
        figure: ``robustness.png``, of the same stage.

    Raises:
        UserError: a file is missing, or the table is damaged.
    """
    rows = read_csv(table, "robustness")
    if not figure.exists():
        raise UserError(f"{figure}: no such file; run the stage robustness")
    first = rows.iloc[0]
    page.section(
        "On corrupted photographs",
        f"The same {first['n']} test photographs of {first['patients']} patients, corrupted, graded by the "
        "model of the first seed and fold, as it is. The drop is the QWK lost against the photographs as "
        "they are; its interval is paired, by a bootstrap over patients. The row mean is over all "
        "corruptions and severities. docs/robustness.md says what the severities are.",
    )
    page.image(
        figure,
        "Line charts of the QWK against severity, one for each corruption; the table below has its numbers.",
        "QWK at each severity. Bands: 95 % intervals over patients.",
    )
    shown = {
        "experiment": rows["experiment"],
        "corruption": rows["corruption"].str.replace("_", " "),
        "severity": rows["severity"].astype("Int64"),
        "QWK": rows["qwk"],
        "95 % interval": intervals(rows, "qwk"),
        "drop": rows["drop"],
        "interval of drop": intervals(rows, "drop"),
        "referable AUC": rows["referable_auc"],
    }
    page.table(pd.DataFrame(shown), "QWK on corrupted test photographs")


def add_subgroups(page: Page, rows: pd.DataFrame, best: str) -> None:
    """Add a section on subgroups: QWK of all experiments, and all metrics of the best one.

    Args:
        page: report page to extend.
        rows: ``subgroups.csv``.
        best: the best experiment, see :func:`.overview.best_experiment`.
    """
    page.section(
        "Subgroups",
        "The test photographs of each dataset by eye, computed quality, larger side in pixels, and site. "
        "Subgroups with too few photographs have counts only. Grades are distributed differently in each, so "
        "a difference need not come from what names the subgroup.",
    )
    keys = ["dataset", "subgroup", "value", "n", "patients", "referable"]
    by_experiment = rows.pivot(index=keys, columns="experiment", values="qwk")
    first = rows[rows["experiment"] == rows["experiment"].iloc[0]]
    ordered = by_experiment.loc[list(first[keys].itertuples(index=False, name=None))]
    page.table(
        ordered[list(rows["experiment"].unique())].reset_index().rename_axis(columns=None),
        "QWK of each experiment: means over training seeds",
    )
    chosen = rows[rows["experiment"] == best]
    shown = {
        "dataset": chosen["dataset"],
        "subgroup": chosen["subgroup"],
        "value": chosen["value"],
        "photographs": chosen["n"],
        "QWK": chosen["qwk"],
        "95 % interval": intervals(chosen, "qwk"),
        "accuracy": chosen["accuracy"],
        "mean error": chosen["mae"],
        "sensitivity": chosen["referable_sensitivity"],
        "specificity": chosen["referable_specificity"],
    }
    page.table(
        pd.DataFrame(shown),
        f"The best experiment, {best}; sensitivity and specificity are of referable DR",
    )

"""The report's sections on subgroups of the test photographs, and on corrupted ones."""

from pathlib import Path

import pandas as pd

from drgrade.errors import UserError
from drgrade.report.page import Page


def add_robustness(page: Page, table: Path, figure: Path) -> None:
    """Add a section on corrupted test photographs.

    Args:
        page: report page to extend.
        table: ``robustness.csv``.
        figure: ``robustness.png``, of the same stage.

    Raises:
        UserError: a file is missing, or the table is damaged.
    """
    rows = _read(table, "robustness")
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
        "95 % interval": _intervals(rows, "qwk"),
        "drop": rows["drop"],
        "interval of drop": _intervals(rows, "drop"),
        "referable AUC": rows["referable_auc"],
    }
    page.table(pd.DataFrame(shown), "QWK on corrupted test photographs")


def add_subgroups(page: Page, table: Path) -> None:
    """Add a section on subgroups: QWK of all experiments, and all metrics of the best one.

    Args:
        page: report page to extend.
        table: ``subgroups.csv``.

    Raises:
        UserError: the table is missing or damaged.
    """
    rows = _read(table, "evaluate")
    own = rows[(rows["subgroup"] == "site") & (rows["dataset"] == rows["dataset"].iloc[0])]
    best = own.sort_values("qwk", ascending=False, kind="stable")["experiment"].iloc[0]
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
        "95 % interval": _intervals(chosen, "qwk"),
        "accuracy": chosen["accuracy"],
        "mean error": chosen["mae"],
        "sensitivity": chosen["referable_sensitivity"],
        "specificity": chosen["referable_specificity"],
    }
    page.table(
        pd.DataFrame(shown),
        f"{best}, the best on its own test photographs; sensitivity and specificity are of referable DR",
    )


def _intervals(table: pd.DataFrame, name: str) -> list[str | None]:
    """The interval of a column in each row as text, None where it has none."""
    ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return [None if pd.isna(low) else f"{low:.3f} to {high:.3f}" for low, high in ends]


def _read(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV.

    Raises:
        UserError: it cannot be read or has no rows.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table ({error}); run the stage {stage}") from None
    if table.empty:
        raise UserError(f"{path}: has no rows; run the stage {stage} again")
    return table

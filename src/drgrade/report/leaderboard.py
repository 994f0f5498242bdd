"""The report's sections on the leaderboard, confusions, external datasets, learning curves and costs."""

from pathlib import Path

import pandas as pd

from drgrade.data.patients import UNKNOWN
from drgrade.report.page import Page
from drgrade.report.tables import intervals

FITTED = (
    "Grades are rounded scores, except in the column QWK, fitted: there, the thresholds between grades are "
    "those with the highest QWK on the validation photographs of the same training. The gain is the "
    "difference from QWK. Both are empty where a training had no validation photographs."
)
"""Explanation of the columns on fitted thresholds."""
BASELINES = (
    "The rows majority (the most common training grade) and class_prior (the shares of the training grades) "
    "look at no photograph."
)
"""Explanation of the baselines."""
DETECTION = (
    "Referable is grade 2 or higher, sight-threatening grade 3 or higher. AUC and average precision (AUPRC) "
    "rank photographs by the score; macro AUC is the mean over grades, one against all others, by their "
    "probabilities. Sensitivity is the highest at a specificity of at least 0.87. ECE (expected calibration "
    "error) and Brier score measure the error of the grades' probabilities; 0 is best. Calibrated: by a "
    "temperature fitted on the validation photographs of the same training, empty where there are too few."
)
"""Explanation of the table on detection and calibration."""


def add_leaderboard(page: Page, table: pd.DataFrame, figures: Path) -> None:
    """Add the leaderboard and its figure.

    Args:
        page: report page to extend.
        table: ``leaderboard.csv``.
        figures: folder with ``leaderboard.png``.
    """
    first = table.iloc[0]
    warning = f" {UNKNOWN}" if first["n"] == first["patients"] else ""
    page.section(
        "Leaderboard",
        "QWK, the quadratic weighted kappa, is the agreement with the true grades: 0 is chance, 1 is "
        f"perfect. Highest: {first['experiment']}, {first['qwk']:.3f} (95 % interval "
        f"{first['qwk_low']:.3f} to {first['qwk_high']:.3f}) on {first['n']} test photographs of "
        f"{first['patients']} patients. {BASELINES}{warning}",
    )
    page.image(
        figures / "leaderboard.png",
        "Bar chart of the quadratic weighted kappa of each experiment; its numbers are in the table below.",
        "QWK of each experiment. Line: 95 % interval over patients; dot: one training seed.",
    )
    page.table(agreement(table), "Agreement: means over training seeds, best QWK first")
    page.text(
        "Intervals are a bootstrap over patients; differences are paired, and one whose interval holds 0 may "
        "be chance. p is the p-value of the difference from the best, corrected for the number of rows "
        f"(Holm). {FITTED}"
    )
    page.table(detection(table), "Detection and calibration: means over training seeds")
    page.text(DETECTION)


def add_confusion(page: Page, figures: Path) -> None:
    """Add a section with the confusion matrices, from ``figures/confusion.png``."""
    page.section(
        "Confusion",
        "How often each true grade (rows) was predicted as each grade (columns). Correct grades are on the "
        "diagonal. Each experiment's first seed.",
    )
    page.image(
        figures / "confusion.png",
        "Confusion matrix of each experiment's first seed, actual grade in rows, predicted in columns.",
        "Counts of test photographs; the darker, the larger the share of the actual grade.",
    )


def add_external(page: Page, table: pd.DataFrame) -> None:
    """Add the results of the same models on external datasets, if there are any.

    Args:
        page: report page to extend.
        table: ``external.csv``.
    """
    if table.empty:
        return
    page.section(
        "On other datasets",
        "The same models, as they are, on all graded photographs of datasets that had no part in training "
        "or selection. The drop is the QWK lost against the own test photographs. Fitted thresholds are "
        "those of the leaderboard; nothing is fitted on these datasets.",
    )
    lines = {
        "dataset": table["dataset"],
        "photographs": table["n"],
        "experiment": table["experiment"],
        "QWK": table["qwk"],
        "95 % interval": intervals(table, "qwk"),
        "drop": table["drop"],
        "QWK, fitted": table["qwk_fitted"],
        "gain": table["fitted_gain"],
        "accuracy": table["accuracy"],
        "mean error": table["mae"],
    }
    page.table(pd.DataFrame(lines), "Agreement: means over training seeds; intervals over patients")
    there = detection(table)
    there.insert(0, "dataset", table["dataset"])
    page.table(there, "Detection and calibration on other datasets: means over training seeds")


def add_learning(page: Page, curves: pd.DataFrame, figures: Path) -> None:
    """Add a section with learning curves, if any training had epochs.

    Args:
        page: report page to extend.
        curves: ``learning_curves.csv``.
        figures: folder with ``learning_curves.png``.
    """
    if curves.empty:
        return
    page.section(
        "Learning curves",
        "Training loss and validation QWK after each epoch, a line for each training. A loss that falls "
        "while the validation QWK falls too is overfitting; a QWK that still rises at the end asks for more "
        "epochs.",
    )
    page.image(
        figures / "learning_curves.png",
        "Line charts of training loss and validation QWK against epoch, one panel for each experiment; the "
        "numbers are in learning_curves.csv.",
        "Losses of different graders cannot be compared.",
    )


def add_costs(page: Page, table: pd.DataFrame) -> None:
    """Add a section on the costs of the trainings.

    Times differ from run to run, so that they are on another page, to which a link leads.

    Args:
        page: report page to extend.
        table: ``leaderboard.csv``.
    """
    page.section("Compute", "Number of weights of each trained model, frozen ones included.")
    trained = table[table["parameters"].notna()]
    weights = [f"{count:,.0f}" for count in trained["parameters"]]
    page.table(pd.DataFrame({"experiment": trained["experiment"], "weights": weights}), "Size of the models")
    page.link("Time and memory of the trainings, and published figures", "../evaluate/leaderboard.html")


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns on agreement as shown on the page, each interval in a single column."""
    return pd.DataFrame(
        {
            "experiment": table["experiment"],
            "QWK": table["qwk"],
            "95 % interval": intervals(table, "qwk"),
            "sd over seeds": table["qwk_sd"],
            "seeds": table["seeds"],
            "accuracy": table["accuracy"],
            "mean error": table["mae"],
            "QWK, fitted": table["qwk_fitted"],
            "gain": table["fitted_gain"],
            "interval of gain": intervals(table, "fitted_gain"),
            "vs majority": table["vs_majority"],
            "vs best": table["vs_best"],
            "interval of vs best": intervals(table, "vs_best"),
            "p": table["p_vs_best_holm"],
        }
    )


def detection(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns on detection and calibration as shown on the page."""
    return pd.DataFrame(
        {
            "experiment": table["experiment"],
            "macro AUC": table["macro_auroc"],
            "referable AUC": table["referable_auc"],
            "referable AUPRC": table["referable_auprc"],
            "sensitivity": table["referable_sensitivity_at_specificity_87"],
            "sight-threatening AUC": table["sight_threatening_auc"],
            "sight-threatening AUPRC": table["sight_threatening_auprc"],
            "ECE": table["ece"],
            "ECE, calibrated": table["ece_calibrated"],
            "Brier": table["brier"],
            "Brier, calibrated": table["brier_calibrated"],
        }
    )

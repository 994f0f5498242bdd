"""The report's sections on decisions: operating points, calibration and sets of grades."""

from pathlib import Path

import pandas as pd

from drgrade.report.page import Page
from drgrade.report.tables import intervals

UNDECIDED = (
    "Nothing was fitted, as no experiment has graded validation photographs of both kinds, referable and "
    "not. docs/decisions.md says what to set."
)

HIGHEST_SUM = "highest sum of sensitivity and specificity"


def point_text(name: str) -> str:
    """Describe an operating point: ``specificity_87`` is ``specificity of at least 0.87``."""
    kind, _, percent = name.partition("_")
    return f"{kind} of at least 0.{percent}" if percent else HIGHEST_SUM


def add_operating(page: Page, operating: pd.DataFrame, figures: Path, best: str, point: str) -> None:
    """Add a section on the detection of referable DR: ROC curves and operating points.

    Args:
        page: report page to extend.
        operating: ``operating.csv``.
        figures: folder with ``roc.png``.
        best: experiment whose operating points are all shown.
        point: name of the operating point that is used.
    """
    page.section(
        "Referable or not",
        "Whether a patient should be referred: grade 2 or higher. An operating point is a threshold on the "
        "probability, chosen on validation photographs; the table says what it reaches on the test "
        "photographs. Sensitivity: share of the referable photographs that are called referable. "
        "Specificity: share of the others that are not called. Positive and negative predictive value: how "
        "often either call is right, where referable DR is as common as among these photographs. Decisions "
        "are made on the mean prediction of all training seeds.",
    )
    if operating.empty:
        page.text(UNDECIDED)
        return
    page.image(
        figures / "roc.png",
        "ROC curves of referable DR on the test photographs, one for each experiment; operating points are "
        "in the table below.",
        f"Large dot: the operating point that is used ({point_text(point)}), chosen on validation "
        "photographs, with its 95 % intervals over patients. Small circles: the other operating points.",
    )
    used = operating[operating["point"] == point]
    page.table(
        rates(used).drop(columns="chosen for"), f"Chosen for: {point_text(point)}; on test photographs"
    )
    chosen = operating[operating["experiment"] == best]
    if len(chosen):
        page.table(
            rates(chosen).drop(columns="experiment"), f"All operating points of {best}, on test photographs"
        )


def rates(operating: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of operating points as shown on the page."""
    return pd.DataFrame(
        {
            "experiment": operating["experiment"],
            "chosen for": [point_text(name) for name in operating["point"]],
            "threshold": operating["threshold"],
            "sensitivity": operating["sensitivity"],
            "interval of sensitivity": intervals(operating, "sensitivity"),
            "specificity": operating["specificity"],
            "interval of specificity": intervals(operating, "specificity"),
            "positive predictive value": operating["ppv"],
            "negative predictive value": operating["npv"],
            "sensitivity on validation": operating["val_sensitivity"],
            "specificity on validation": operating["val_specificity"],
        }
    )


def add_calibration(page: Page, sets: pd.DataFrame, figures: Path) -> None:
    """Add a section on probabilities, sets of grades, and photographs that are left to a clinician.

    Args:
        page: report page to extend.
        sets: ``sets.csv``.
        figures: folder with ``reliability.png`` and ``risk_coverage.png``.
    """
    page.section(
        "Probabilities and doubt",
        "Can a probability be believed? If it can, 8 of 10 grades that are given with a probability of 0.8 "
        "are right, and the curve lies on the diagonal.",
    )
    if sets.empty:
        page.text(UNDECIDED)
        return
    page.image(
        figures / "reliability.png",
        "Reliability curves of each experiment, before and after calibration: share of right grades against "
        "probability.",
        "Test photographs in bins of equal width; the larger a dot, the more photographs. Calibration was "
        "fitted on validation photographs.",
    )
    page.text(
        "Instead of one grade, a set of grades can be given that holds the true one in most cases. A "
        "photograph whose set holds too many grades is left to a clinician; the others are accepted. "
        "Accuracy and QWK are those of the single grade, on all and on the accepted photographs."
    )
    page.table(doubts(sets), "Sets of grades, on test photographs")
    page.image(
        figures / "risk_coverage.png",
        "Share of wrong grades against the share of photographs accepted, one line for each experiment.",
        "What is gained if the photographs with the least confident grades are left to a clinician.",
    )


def doubts(sets: pd.DataFrame) -> pd.DataFrame:
    """Return the columns on sets of grades as shown on the page."""
    return pd.DataFrame(
        {
            "experiment": sets["experiment"],
            "true grade wanted in": 1 - sets["alpha"],
            "found in": sets["coverage"],
            "its interval": intervals(sets, "coverage"),
            "grades in a set": sets["mean_size"],
            "accepted": sets["accepted"],
            "accuracy": sets["accuracy"],
            "accuracy, accepted": sets["accuracy_accepted"],
            "QWK": sets["qwk"],
            "QWK, accepted": sets["qwk_accepted"],
        }
    )

"""The report's sections that show photographs: examples, heat maps, errors, and problems of the input."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.images.store import Crops
from drgrade.report.inputs import grade_counts
from drgrade.report.page import Page
from drgrade.report.sheets import heat_map_sheet

EXAMPLES, ERRORS, WORST, LESIONS = "crop_sheet.png", "error_sheet.png", "worst_sheet.png", "lesion_sheet.png"
"""Files of the contact sheets."""
GALLERIES = "heat_maps"
"""Folder of the sheets with heat maps."""


def add_examples(page: Page, out: Path) -> None:
    """Add a section with crops of all grades, from the sheet EXAMPLES in ``out``."""
    page.section("Examples by grade")
    page.image(
        out / EXAMPLES,
        "Contact sheet of cropped fundus photographs with their grades.",
        "Crops as the networks see them, all grades by turns. The whole retina should fill each.",
    )


def draw_galleries(index: pd.DataFrame, crops: Crops, sheets: Sequence[Path], out: Path) -> None:
    """Draw the heat maps of each explanation by grade; see :func:`.heat_map_sheet`.

    Args:
        index: ``index.parquet`` of the graded dataset.
        crops: its crops.
        sheets: contact sheets of the stage explain, beside each its folder ``maps``.
        out: folder to write to: ``heat_maps/<explanation>.png``; others of earlier runs are removed.
    """
    shutil.rmtree(out / GALLERIES, ignore_errors=True)
    for sheet in sheets:
        name = sheet.parent.name
        heat_map_sheet(index, crops, sheet.with_name("maps"), out / GALLERIES / f"{name}.png")


def add_heat_maps(page: Page, sheets: Sequence[Path], params: Mapping[str, Any], out: Path) -> None:
    """Add a section with the heat maps of each explanation: by grade, and over photographs with lesions.

    Args:
        page: report page to extend.
        sheets: as in :func:`draw_galleries`.
        params: all params.
        out: the folder written to by it.
    """
    if sheets:
        page.section("What the model looks at")
    for sheet in sheets:
        name = sheet.parent.name
        page.image(
            out / GALLERIES / f"{name}.png",
            "Fundus photographs in order of their grades, each above the same photograph with its heat map.",
            f"{name}, by grade. {heat_map_caption(params['explanations'][name])}",
        )
        page.image(
            sheet,
            "Fundus photographs with heat maps of the score, and with outlines of lesions.",
            f"{name}: photographs with lesion masks, whose outlines are white, and graded test photographs.",
        )


def heat_map_caption(explanation: Mapping[str, Any]) -> str:
    """Return the caption of the heat maps of an explanation: method, experiments and colour scale.

    Args:
        explanation: its block in the params, see :class:`drgrade.params.Explanation`.
    """
    names = [explanation["experiment"], *explanation["also"]]
    models = f"experiments {', '.join(names)}, maps averaged" if len(names) > 1 else f"experiment {names[0]}"
    if explanation["method"] == "lesion_maps":
        return (
            f"Method lesion_maps, {models}. The probability of a lesion by the grader's own lesion network; "
            "one scale for all images."
        )
    scale = "Each image has its own colour scale."
    if explanation["method"] == "ram" and explanation["scale"] == "common":
        scale = "One scale for all images; where there is a line, it marks grade 2."
    return (
        f"Method {explanation['method']}, {models}. {scale} "
        "A heat map shows where the score comes from, not whether the grade is right."
    )


def add_errors(page: Page, errors: pd.DataFrame, best: str, out: Path) -> None:
    """Add a section with the worst errors of the best experiment, from the sheet ERRORS in ``out``.

    Args:
        page: report page to extend.
        errors: rows of ``errors.csv`` of this experiment.
        best: its name.
        out: folder of the sheet.
    """
    page.section(
        "Worst errors",
        f"Wrongly graded test photographs of {best}, those furthest from their true grade first. Grades and "
        "probabilities are those of the mean prediction of all seeds, before calibration.",
    )
    page.image(
        out / ERRORS,
        "Contact sheet of wrongly graded photographs with true grade, predicted grade and probability; the "
        "table below has the same.",
        "Each with its true grade, the predicted one and its probability. Look at them: a label may be "
        "wrong, or the photograph ungradable.",
    )
    if len(errors):
        shown = errors[["image_id", "grade", "predicted", "score", "probability"]]
        page.table(shown.rename(columns={"grade": "true grade", "score": "expected grade"}), "Worst errors")


def add_inputs(page: Page, counts: pd.DataFrame, indexes: Mapping[str, pd.DataFrame], out: Path) -> None:
    """Add a section on problems of the input: rows by status and reason, and photographs of low quality.

    Args:
        page: report page to extend.
        counts: ``input.csv``.
        indexes: ``index.parquet`` by dataset.
        out: folder of the sheet WORST.
    """
    page.section("Input problems")
    for name, index in indexes.items():
        rows = counts[counts["dataset"] == name]
        bad = rows[(rows["table"] == "index") & ~rows["status"].isin(["ok", "unlabelled"])]["rows"].sum()
        failed = rows[(rows["table"] == "crops") & (rows["status"] != "ok")]["rows"].sum()
        page.text(
            f"Dataset {name}: {len(index)} photographs and labels, {bad} of them missing, unreadable or left "
            f"out; {failed} without a crop. Each is counted below with its reason."
        )
        page.table(rows.drop(columns="dataset"), f"{name}: rows of the index and of the crops by status")
        page.table(grade_counts(index), f"{name}: usable graded photographs")
    page.image(
        out / WORST,
        "Contact sheet of the photographs with the lowest computed quality.",
        "The photographs that are hardest to grade by their computed quality, worst first, with the measure "
        "that is to blame. index.min_quality leaves out those below a limit.",
    )


def add_lesions(page: Page, above: float, out: Path) -> None:
    """Add a section with detected lesions, from the sheet LESIONS in ``out``.

    Args:
        page: report page to extend.
        above: score above which detections are shown.
        out: folder of the sheet.
    """
    page.section("Detected lesions")
    page.image(
        out / LESIONS,
        "Cropped fundus photographs with boxes around detected lesions.",
        f"Detections that score above {above:g}, a colour for each kind of lesion.",
    )

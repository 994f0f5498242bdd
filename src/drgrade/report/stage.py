"""The stage ``report``: inputs and results of a run on one HTML page and in model cards."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drgrade.data.patients import UNKNOWN
from drgrade.errors import UserError
from drgrade.evaluate.costs import COSTS
from drgrade.files import atomic_write
from drgrade.images.store import Crops
from drgrade.report.detection import add_detector
from drgrade.report.inputs import grade_counts, input_counts
from drgrade.report.model_card import NOTICE, model_card
from drgrade.report.page import Page, flattened
from drgrade.report.segmentation import add_segmentation
from drgrade.report.sheets import crop_sheet, lesion_sheet, worst_sheet
from drgrade.schema import CROPS, INDEX, LESION_BOXES, read_table

log = logging.getLogger(__name__)

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


def make_report(
    index: Path,
    crops_table: Path,
    store: Path,
    lesions: Path | None,
    patches_statistics: Sequence[Path],
    detector_metrics: Path | None,
    lesion_metrics: Path | None,
    leaderboard: Path,
    metrics: Path,
    params: dict[str, Any],
    out: Path,
    heat_maps: Sequence[Path] = (),
    segmentation_metrics: Path | None = None,
) -> None:
    """Write ``report.html``, its images, ``input.csv``, ``params.yaml`` and ``model_cards/*.md``.

    Args:
        index: ``index.parquet`` of the dataset used for pretraining.
        crops_table: its ``crops.parquet``.
        store: its ``store.json``, in the folder of its shards.
        lesions: ``lesions.parquet``; None if no lesions were detected in this run.
        patches_statistics: JSON of the stage patches, one for each source of boxes.
        detector_metrics: JSON of the stage detector; None as ``lesions``.
        lesion_metrics: JSON of the stage lesion_metrics, in the folder of its ``verdicts.png``; None as
            ``lesions``.
        leaderboard: ``leaderboard.csv``, in the folder of the stage's ``external.csv`` and ``figures/``.
        metrics: ``metrics.json`` of the stage evaluate.
        params: all params, with defaults filled in.
        out: folder to write to.
        heat_maps: contact sheets of the stage explain, each in a folder named after the explanation.
        segmentation_metrics: JSON of the stage segmentation_metrics, in the folder of its ``overlays.png``;
            None if it did not run.

    Raises:
        UserError: an input is missing or damaged.
    """
    rows = read_table(index, INDEX)
    out.mkdir(parents=True, exist_ok=True)
    counts = input_counts(rows, read_table(crops_table, CROPS))
    with atomic_write(out / "input.csv") as partial:
        counts.to_csv(partial, index=False, lineterminator="\n")
    boxes = None if lesions is None else read_table(lesions, LESION_BOXES)
    draw_sheets(rows, Crops(store, crops_table), boxes, params, out)
    cards = model_cards(metrics, params)
    write_cards(cards, out / "model_cards")

    page = Page("Grading diabetic retinopathy: report", NOTICE)
    add_leaderboard(page, leaderboard)
    add_external(page, leaderboard.with_name("external.csv"))
    add_inputs(page, counts, rows, params)
    add_pictures(page, out, params, heat_maps, lesions=boxes is not None)
    if detector_metrics is not None and lesion_metrics is not None:
        verdicts = lesion_metrics.with_name("verdicts.png")
        add_detector(page, read_json(detector_metrics), read_json(lesion_metrics), verdicts, out)
    if segmentation_metrics is not None:
        overlays = segmentation_metrics.with_name("overlays.png")
        add_segmentation(page, read_json(segmentation_metrics), overlays)
    add_patches(page, patches_statistics)
    page.section("Model cards")
    for name, card in cards.items():
        page.folded(name, card)
    resolved = yaml.safe_dump(params, sort_keys=False)
    page.section("Parameters")
    page.folded("params.yaml, defaults filled in", resolved)
    with atomic_write(out / "params.yaml") as partial:
        partial.write_text(resolved)
    with atomic_write(out / "report.html") as partial:
        partial.write_text(page.render())
    log.info("%s: written", out / "report.html")


def draw_sheets(
    rows: pd.DataFrame, crops: Crops, boxes: pd.DataFrame | None, params: dict[str, Any], out: Path
) -> None:
    """Draw the contact sheets that :func:`add_pictures` shows; the lesion sheet only if given ``boxes``."""
    crop_sheet(rows, crops, params["report"]["sheet"], out / "crop_sheet.png")
    worst_sheet(rows, crops, params["report"]["sheet"], out / "worst_sheet.png")
    if boxes is not None:
        lesion_sheet(rows, crops, boxes, params["patches"], out / "lesion_sheet.png")


def model_cards(metrics: Path, params: dict[str, Any]) -> dict[str, str]:
    """Return the model card of each experiment, in Markdown.

    Raises:
        UserError: an experiment is missing in the metrics.
    """
    measured = read_json(metrics)
    unmeasured = sorted(set(params["experiments"]) - set(measured))
    if unmeasured:
        raise UserError(f"{metrics}: lacks the experiment {unmeasured[0]}; run the stage evaluate again")
    return {name: model_card(name, measured[name], params) for name in params["experiments"]}


def add_leaderboard(page: Page, leaderboard: Path) -> None:
    """Add the leaderboard and its two figures to the page.

    Raises:
        UserError: the table is missing or damaged, or a figure is missing.
    """
    try:
        table = pd.read_csv(leaderboard)
    except (OSError, ValueError) as error:
        raise UserError(f"{leaderboard}: not a readable table ({error}); run the stage evaluate") from None
    figures = leaderboard.parent / "figures"
    missing = [name for name in ("leaderboard.png", "confusion.png") if not (figures / name).exists()]
    if missing:
        raise UserError(f"{figures / missing[0]}: no such file; run the stage evaluate")
    first = table.iloc[0]
    warning = f" {UNKNOWN}" if first["n"] == first["patients"] else ""
    page.section(
        "Leaderboard",
        f"Best: {first['experiment']}, QWK {first['qwk']:.3f} (95 % interval {first['qwk_low']:.3f} to "
        f"{first['qwk_high']:.3f}) on {first['n']} test photographs of {first['patients']} patients. "
        "Intervals are a bootstrap over patients; differences are paired, and one whose interval holds 0 may "
        f"be chance. p is the p-value of the difference from the best, corrected for the number of rows "
        f"(Holm). {BASELINES} {FITTED}{warning}",
    )
    page.table(agreement(table), "Agreement: means over training seeds, best QWK first")
    page.text(DETECTION)
    page.table(detection(table), "Detection and calibration: means over training seeds")
    if table[list(COSTS)].notna().any(axis=None):
        page.table(costs(table), "Cost of a training: mean over seeds and folds, of memory the highest")
    page.image(
        figures / "leaderboard.png",
        "Bar chart of the quadratic weighted kappa of each experiment; its numbers are in the table above.",
        "QWK of each experiment. Line: 95 % interval over patients; dot: one training seed.",
    )
    page.image(
        figures / "confusion.png",
        "Confusion matrix of each experiment's first seed, actual grade in rows, predicted in columns.",
        "Counts of test photographs; the darker, the larger the share of the actual grade.",
    )


def add_external(page: Page, path: Path) -> None:
    """Add the results of the same models on external datasets, if there are any.

    Raises:
        UserError: the table is missing or damaged.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table ({error}); run the stage evaluate") from None
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


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns on what a training cost as shown on the page."""
    weights = [None if pd.isna(value) else f"{value:,.0f}" for value in table["parameters"]]
    return pd.DataFrame(
        {
            "experiment": table["experiment"],
            "weights": weights,
            "minutes": table["train_minutes"],
            "peak memory, GB": table["peak_memory_gb"],
            "images/s": table["images_per_s"],
        }
    )


def intervals(table: pd.DataFrame, name: str) -> list[str | None]:
    """Return the interval of a column in each row as text, None where it has none."""
    ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return [None if pd.isna(low) else f"{low:.3f} to {high:.3f}" for low, high in ends]


def add_inputs(page: Page, counts: pd.DataFrame, index: pd.DataFrame, params: dict[str, Any]) -> None:
    """Add the counts of the input rows by status and reason, and of the graded photographs by split."""
    bad = counts[(counts["table"] == "index") & ~counts["status"].isin(["ok", "unlabelled"])]["rows"].sum()
    failed = counts[(counts["table"] == "crops") & (counts["status"] != "ok")]["rows"].sum()
    page.section(
        "What went in",
        f"Dataset {params['roles']['pretrain']}: {len(index)} photographs and labels, {bad} of them "
        f"missing or unreadable; {failed} without a crop. Each is counted below with its reason.",
    )
    page.table(counts, "Rows of the index and of the crops by status and reason")
    page.table(grade_counts(index), "Usable graded photographs")


def add_pictures(
    page: Page, out: Path, params: dict[str, Any], heat_maps: Sequence[Path], *, lesions: bool
) -> None:
    """Add the contact sheets in ``out``, with the lesion sheet if ``lesions``, and the heat maps."""
    page.section("Crops and lesions" if lesions else "Crops")
    page.image(
        out / "crop_sheet.png",
        "Contact sheet of cropped fundus photographs with their grades.",
        "Crops as the networks see them, all grades by turns. The whole retina should fill each.",
    )
    if lesions:
        above = params["patches"]["min_score"]
        page.image(
            out / "lesion_sheet.png",
            "Cropped fundus photographs with boxes around detected lesions.",
            f"Detections that score above {above:g}, a colour for each kind of lesion.",
        )
    page.image(
        out / "worst_sheet.png",
        "Contact sheet of the photographs with the lowest computed quality.",
        "The photographs that are hardest to grade by their computed quality, worst first, with the measure "
        "that is to blame. index.min_quality leaves out those below a limit.",
    )
    if heat_maps:
        page.section("What the model looks at")
    for sheet in heat_maps:
        explanation = params["explanations"][sheet.parent.name]
        page.image(sheet, "Fundus photographs with heat maps of the score.", heat_map_caption(explanation))


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
        scale = "One scale for all images; the line marks grade 2."
    return (
        f"Method {explanation['method']}, {models}. {scale} "
        "A heat map shows where the score comes from, not whether the grade is right."
    )


def add_patches(page: Page, statistics: Sequence[Path]) -> None:
    """Add a table of patch counts for each source of boxes; nothing if there are none."""
    if statistics:
        page.section("Patches")
    for path in statistics:
        counted = read_json(path)
        page.table(flattened(counted), f"Boxes that pass the patch filter, source {counted['source']}")


def write_cards(cards: dict[str, str], folder: Path) -> None:
    """Write one Markdown file per experiment; remove cards of earlier runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, card in cards.items():
        with atomic_write(folder / f"{name}.md") as partial:
            partial.write_text(card)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); run the stage that writes it") from None

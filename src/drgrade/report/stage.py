"""The stage ``report``: inputs and results of a run on one HTML page, in model cards and dataset cards."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from drgrade.files import atomic_write
from drgrade.images.dataset import CroppedDataset
from drgrade.report.dataset_card import dataset_card
from drgrade.report.decisions import add_calibration, add_operating
from drgrade.report.detection import add_detector
from drgrade.report.inputs import input_counts
from drgrade.report.leaderboard import add_confusion, add_costs, add_external, add_leaderboard, add_learning
from drgrade.report.model_card import NOTICE, model_card
from drgrade.report.overview import best_experiment, summary
from drgrade.report.page import Page, flattened
from drgrade.report.photographs import (
    ERRORS,
    EXAMPLES,
    LESIONS,
    WORST,
    add_errors,
    add_examples,
    add_heat_maps,
    add_inputs,
    add_lesions,
    draw_galleries,
)
from drgrade.report.robustness import add_robustness, add_subgroups
from drgrade.report.segmentation import add_segmentation
from drgrade.report.sheets import crop_sheet, error_sheet, lesion_sheet, worst_sheet
from drgrade.report.tables import Results, read_json
from drgrade.report.weights import Records
from drgrade.schema import CROPS, LESION_BOXES, read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What the report reads, apart from the params.

    Attributes:
        graded: dataset that the experiments are trained and tested on.
        pretrained: dataset used for pretraining; may be the same.
        evaluated: folder of the stage evaluate.
        heat_maps: contact sheets of the stage explain, each in a folder named after the explanation.
        robustness: ``robustness.csv`` of the stage robustness, in the folder of its ``figures/``; None if it
            did not run.
        lesions: ``lesions.parquet`` of the dataset ``pretrained``; None if no lesions were detected.
        detector_metrics: JSON of the stage detector; None as ``lesions``, or if the segmentation finds the
            lesions.
        lesion_metrics: JSON of the stage lesion_metrics, in the folder of its ``verdicts.png``; None as
            ``lesions``.
        segmentation_metrics: JSON of the stage segmentation_metrics, in the folder of its ``overlays.png``;
            None if it did not run.
        patches: JSON of the stage patches, one for each source of boxes.
        described: the datasets that get a card.
        trainings: ``training.json`` of each training.
        encoders: ``encoder.json`` of each pretraining, in a folder of its name.
    """

    graded: CroppedDataset
    pretrained: CroppedDataset
    evaluated: Path
    heat_maps: Sequence[Path] = ()
    robustness: Path | None = None
    lesions: Path | None = None
    detector_metrics: Path | None = None
    lesion_metrics: Path | None = None
    segmentation_metrics: Path | None = None
    patches: Sequence[Path] = ()
    described: Sequence[CroppedDataset] = ()
    trainings: Sequence[Path] = ()
    encoders: Sequence[Path] = ()

    @property
    def datasets(self) -> dict[str, CroppedDataset]:
        """The datasets by name, each once."""
        return {one.name: one for one in (self.pretrained, self.graded)}


def make_report(inputs: Inputs, params: dict[str, Any], out: Path) -> None:
    """Write ``report.html``, its images, ``input.csv``, ``params.yaml`` and the cards.

    Model cards are ``model_cards/<experiment>.md``, dataset cards ``dataset_cards/<dataset>.md``.

    Args:
        inputs: files and folders to read.
        params: all params, with defaults filled in.
        out: folder to write to.

    Raises:
        UserError: an input is missing or damaged.
    """
    results = Results.read(inputs.evaluated, params["experiments"])
    best, _ = best_experiment(results.metrics, params)
    errors = results.tables["errors"]
    errors = errors[errors["experiment"] == best]
    out.mkdir(parents=True, exist_ok=True)
    counts = count_inputs(inputs.datasets)
    with atomic_write(out / "input.csv") as partial:
        counts.to_csv(partial, index=False, lineterminator="\n")
    draw_sheets(inputs, errors, params, out)
    records = Records.read(inputs.trainings, inputs.encoders)
    cards = {name: model_card(name, results, records, params) for name in params["experiments"]}
    write_cards(cards, out / "model_cards")
    dataset_cards = {one.name: dataset_card(one, params) for one in inputs.described}
    write_cards(dataset_cards, out / "dataset_cards")

    about = summary(inputs.graded.index, results.metrics, results.tables["operating"], params)
    page = Page("Grading diabetic retinopathy: report", NOTICE, about)
    add_results(page, results, inputs.robustness, best, params["calibrate"]["point"])
    add_examples(page, out)
    add_heat_maps(page, inputs.heat_maps, params, out)
    add_errors(page, errors, best, out)
    add_learning(page, results.tables["learning_curves"], results.figures)
    add_inputs(page, counts, {name: one.index for name, one in inputs.datasets.items()}, out)
    add_lesion_stages(page, inputs, params, out)
    add_costs(page, results.tables["leaderboard"])
    add_cards(page, {"Model cards": cards, "Dataset cards": dataset_cards})
    add_params(page, params, out)
    with atomic_write(out / "report.html") as partial:
        partial.write_text(page.render())
    log.info("%s: written", out / "report.html")


def count_inputs(datasets: Mapping[str, CroppedDataset]) -> pd.DataFrame:
    """Return ``input.csv``: the rows of :func:`.input_counts` for each dataset, named in the first column."""
    tables = []
    for name, data in datasets.items():
        counts = input_counts(data.index, read_table(data.crops_file, CROPS))
        counts.insert(0, "dataset", name)
        tables.append(counts)
    return pd.concat(tables, ignore_index=True)


def draw_sheets(inputs: Inputs, errors: pd.DataFrame, params: Mapping[str, Any], out: Path) -> None:
    """Draw all contact sheets; that of the lesions only if lesions were detected.

    Args:
        inputs: datasets, heat maps and lesions.
        errors: rows of ``errors.csv`` of the best experiment.
        params: all params.
        out: folder to write to.
    """
    rows, crops, number = inputs.graded.index, inputs.graded.crops, params["report"]["sheet"]
    crop_sheet(rows, crops, number, out / EXAMPLES)
    worst_sheet(rows, crops, number, out / WORST)
    error_sheet(errors, crops, out / ERRORS)
    draw_galleries(rows, crops, inputs.heat_maps, out)
    if inputs.lesions is not None:
        boxes, data = read_table(inputs.lesions, LESION_BOXES), inputs.pretrained
        lesion_sheet(data.index, data.crops, boxes, params["patches"], out / LESIONS)


def add_results(page: Page, results: Results, robustness: Path | None, best: str, point: str) -> None:
    """Add the sections on what the models are worth.

    Args:
        page: report page to extend.
        results: of the stage evaluate.
        robustness: see :class:`Inputs`.
        best: the best experiment.
        point: name of the operating point that is used.
    """
    tables, figures = results.tables, results.figures
    add_leaderboard(page, tables["leaderboard"], figures)
    add_operating(page, tables["operating"], figures, best, point)
    add_calibration(page, tables["sets"], figures)
    add_confusion(page, figures)
    add_subgroups(page, tables["subgroups"], best)
    if robustness is not None:
        add_robustness(page, robustness, robustness.parent / "figures/robustness.png")
    add_external(page, tables["external"])


def add_lesion_stages(page: Page, inputs: Inputs, params: Mapping[str, Any], out: Path) -> None:
    """Add the sections on detection, segmentation and patches, as far as these stages ran."""
    if inputs.lesions is not None:
        add_lesions(page, params["patches"]["min_score"], out)
    if inputs.lesion_metrics is not None:
        tiles = read_json(inputs.detector_metrics) if inputs.detector_metrics else None
        verdicts = inputs.lesion_metrics.with_name("verdicts.png")
        add_detector(page, tiles, read_json(inputs.lesion_metrics), verdicts, out)
    if inputs.segmentation_metrics is not None:
        overlays = inputs.segmentation_metrics.with_name("overlays.png")
        add_segmentation(page, read_json(inputs.segmentation_metrics), overlays)
    if inputs.patches:
        page.section("Patches")
    for path in inputs.patches:
        counted = read_json(path)
        page.table(flattened(counted), f"Boxes that pass the patch filter, source {counted['source']}")


def add_cards(page: Page, cards: Mapping[str, Mapping[str, str]]) -> None:
    """Add a section for each kind of cards, by title, with the cards by name; none for a kind without any."""
    for title, named in cards.items():
        if named:
            page.section(title)
        for name, card in named.items():
            page.folded(name, card)


def add_params(page: Page, params: dict[str, Any], out: Path) -> None:
    """Add the params; write them to ``params.yaml`` too."""
    resolved = yaml.safe_dump(params, sort_keys=False)
    page.section("Parameters")
    page.folded("params.yaml, defaults filled in", resolved)
    with atomic_write(out / "params.yaml") as partial:
        partial.write_text(resolved)


def write_cards(cards: Mapping[str, str], folder: Path) -> None:
    """Write one Markdown file per card; remove cards of earlier runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, card in cards.items():
        with atomic_write(folder / f"{name}.md") as partial:
            partial.write_text(card)

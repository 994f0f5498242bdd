"""Evaluate the search for lesions on whole photographs not trained on: ``drgrade lesion_metrics``.

Detector and segmentation are trained on tiles but used on whole photographs. Score thresholds are chosen on
the validation photographs and applied to the test photographs.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.data.registry import raw_root
from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.images.read import read_photograph
from drgrade.lesions.box_sources import drawn
from drgrade.lesions.froc import froc_metrics
from drgrade.lesions.matching import Matches, match
from drgrade.lesions.predict import SEARCHED, detect_lesions
from drgrade.params import LesionBoxes, LesionMetrics, Lesions
from drgrade.report.verdicts import verdict_sheet, verdicts
from drgrade.schema import INDEX, LESION_BOXES, LESIONS, read_table

log = logging.getLogger(__name__)


def measure_detector(
    dataset: str,
    index: Path,
    crops: Path,
    model: Path,
    boxes: LesionBoxes,
    search: Lesions,
    params: LesionMetrics,
    out: Path,
) -> None:
    """Search the validation and test photographs with masks, and measure what is found.

    Writes ``out/lesions.parquet`` and ``out/searched.parquet`` (see :func:`.predict.detect_lesions`),
    ``out/metrics.json``, and ``out/verdicts.png`` with cutouts of hits, misses and false positives on the
    test photographs (on the validation photographs if there are none for testing). The metrics have the keys
    ``rule``, ``val`` and ``test`` (null without test photographs): the results of
    :func:`.froc.froc_metrics`, both at the thresholds chosen on ``val``.

    Args:
        dataset: name of a dataset with masks.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        model: folder of the trained detector, or of the segmentation network: what ``search.source`` names.
        boxes: how masks are converted to boxes and photographs are cut into tiles.
        search: what finds the lesions, and which are kept.
        params: how detections are matched to lesions.
        out: folder to write to.

    Raises:
        UserError: no validation photograph with masks can be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    found_table = out / "lesions.parquet"
    detect_lesions(dataset, index, crops, model, boxes, search, found_table, select=_held_out)
    found = read_table(found_table, LESION_BOXES)
    searched = read_table(out / "searched.parquet", SEARCHED)
    searched = searched[searched["status"] == "ok"]
    rows = read_table(index, INDEX).merge(searched[["image_id"]], on="image_id").sort_values("image_id")
    if not (rows["split"] == "val").any():
        raise UserError(f"{index}: no validation photograph with masks can be read; see {out}")
    truth = drawn(dataset, rows, boxes)
    metrics: dict[str, Any] = {"rule": params.match, "test": None}
    matches: dict[str, Matches] = {}
    for split in ("val", "test"):
        names = rows.loc[rows["split"] == split, "image_id"].tolist()
        if not names:
            continue
        mine, theirs = (table[table["image_id"].isin(names)] for table in (truth, found))
        matches[split] = match(mine, theirs, names, rule=params.match, min_side=boxes.min_side / boxes.scale)
        metrics[split] = froc_metrics(matches[split], scores_of(metrics.get("val")))
    write_json(metrics, out / "metrics.json")
    split = "test" if "test" in matches else "val"
    paths = [raw_root(dataset) / path for path in rows.loc[rows["split"] == split, "path"]]
    _show(matches[split], paths, scores_of(metrics["val"]) or {}, params.examples, out / "verdicts.png")
    log.info("AP50 %.3f on %d %s photographs", metrics[split]["all"]["AP50"] or 0, len(paths), split)


def _show(
    matches: Matches, paths: list[Path], scores: Mapping[str, float | None], examples: int, sheet: Path
) -> None:
    """Draw hits, misses and false positives at ``scores``; ``paths`` are the photographs of ``matches``."""
    chosen = verdicts(matches.truth, matches.found, scores, examples)
    verdict_sheet(chosen, lambda image: read_photograph(paths[image]), examples, sheet)


def scores_of(metrics: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    """Return the score threshold of each lesion that the metrics were computed with; None without metrics."""
    return None if metrics is None else {lesion: metrics[lesion]["score"] for lesion in LESIONS}


def _held_out(index: pd.DataFrame) -> "pd.Series[bool]":
    return (index["subset"] == "segmentation") & index["split"].isin(["val", "test"])

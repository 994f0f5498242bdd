"""What a detector finds on whole photographs it was not trained on: ``drgrade lesion_metrics``.

Tiles are what a detector is trained on, photographs what it is used on. Score thresholds are chosen on
the validation photographs and tried on the test photographs.
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
    detector: Path,
    boxes: LesionBoxes,
    search: Lesions,
    params: LesionMetrics,
    out: Path,
) -> None:
    """Search the photographs with masks that the detector did not learn from, and compare.

    Writes ``out/lesions.parquet`` and ``out/searched.parquet`` (of :func:`.predict.detect_lesions`),
    ``out/metrics.json`` and ``out/verdicts.png``, cutouts of hits, misses and false alarms on the test
    photographs, or on those for validation where none is for the test. The metrics are ``rule``, ``val`` and,
    with test photographs, ``test``: what :func:`.froc.froc_metrics` says, at the thresholds of ``val``.

    Args:
        dataset: with masks.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        detector: folder of the trained detector.
        boxes: how masks become boxes and photographs become tiles.
        search: batch size and which detections to keep.
        params: how detections meet lesions.
        out: folder.

    Raises:
        UserError: no validation photograph can be searched.
    """
    out.mkdir(parents=True, exist_ok=True)
    found_table = out / "lesions.parquet"
    detect_lesions(dataset, index, crops, detector, boxes, search, found_table, select=_held_out)
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
    """Draw what became of boxes at these thresholds; ``paths`` are of the photographs that were matched."""
    chosen = verdicts(matches.truth, matches.found, scores, examples)
    verdict_sheet(chosen, lambda image: read_photograph(paths[image]), examples, sheet)


def scores_of(metrics: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    """The thresholds by lesion that metrics were made with."""
    return None if metrics is None else {lesion: metrics[lesion]["score"] for lesion in LESIONS}


def _held_out(index: pd.DataFrame) -> "pd.Series[bool]":
    return (index["subset"] == "segmentation") & index["split"].isin(["val", "test"])

"""The report's section on the lesions that were found: tables and FROC curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.report.page import Page, cell
from drgrade.report.plots import froc_chart
from drgrade.schema import LESION_NAMES

ROWS = {"all": "all", **LESION_NAMES}
AT_ONE = "sensitivity at 1 false alarm"
COCO_KEYS = ("AP", "AP50", "AP75", "AR100")
RULES = {
    "iou": "their boxes overlap by an IoU of 0.5 or more",
    "centre": "its centre lies in the lesion's box",
}


def add_detector(
    page: Page, tiles: Mapping[str, Any] | None, measured: Mapping[str, Any], verdicts: Path, out: Path
) -> None:
    """Add a section with precision, F1 and sensitivity by lesion and by size; write ``froc.png``.

    Args:
        page: report page to extend.
        tiles: ``metrics.json`` of the stage detector; None where the segmentation finds the lesions.
        measured: ``metrics.json`` of the stage lesion_metrics.
        verdicts: image with examples of hits, misses and false positives, of the same stage.
        out: folder for ``froc.png``.
    """
    split, kind = ("test", "test") if measured["test"] else ("val", "validation")
    found = measured[split]
    same = (
        ", the very ones measured here for want of a test photograph with masks: precision, recall and F1 "
        "are a little too good."
    )
    froc_chart(found, out / "froc.png")
    page.section(
        "Lesions from the segmentation" if tiles is None else "Lesion detector",
        f"On {count(found['photographs'], f'{kind} photograph')} with masks. A detection hits a lesion of "
        f"its kind when {RULES[measured['rule']]}; a second box on a lesion is a false alarm. Score: the "
        f"threshold of the highest F1 on {count(measured['val']['photographs'], 'validation photograph')}"
        + ("." if split == "test" else same),
    )
    page.table(lesion_table(found), f"{kind.capitalize()} photographs, all lesions and by kind")
    page.image(
        out / "froc.png",
        "FROC curves: sensitivity against false alarms, a line for each kind of lesion; read at 1 in the "
        "table above.",
        "Share of the lesions found, by the number of false alarms for each photograph. Grey: 95 % interval "
        "for all lesions, a bootstrap over photographs; drawn from 5 photographs on.",
    )
    page.table(
        size_table(found), "Share of the lesions found at that score, by side in pixels of the photograph"
    )
    page.image(
        verdicts,
        "Cutouts of photographs around boxes: lesions found, lesions missed, and false alarms of each kind.",
        f"What became of boxes on {kind} photographs at that score. Solid: hit; dashed: missed; dotted: "
        "false alarm, best score first.",
    )
    if tiles is not None:
        page.table(tile_table(tiles), "COCO figures on the validation tiles, as the training saw them")


def count(number: int, what: str) -> str:
    """Return a number with its noun in the singular or plural, such as ``2 tiles``."""
    return f"{number} {what}{'s' * (number != 1)}"


def lesion_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of AP50 and the metrics at the chosen score: a row for all lesions and for each kind."""
    one = found["rates"].index(1.0)
    rows = []
    for lesion, name in ROWS.items():
        row = found[lesion]
        rows.append(
            {
                "lesion": name,
                "lesions": row["boxes"],
                "AP50": row["AP50"],
                AT_ONE: row["sensitivity"][one],
                "95 % interval": between(row["low"][one], row["high"][one]),
                "score": row.get("score"),
                **{key: row[key] for key in ("precision", "recall", "F1")},
            }
        )
    return pd.DataFrame(rows)


def tile_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of COCO's average precision and recall: a row for all lesions and for each kind."""
    rows = {name: metrics if lesion == "all" else metrics["lesions"][lesion] for lesion, name in ROWS.items()}
    return pd.DataFrame(
        [{"lesion": name} | {key: row[key] for key in COCO_KEYS} for name, row in rows.items()]
    )


def size_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of the share of lesions found by box size: a row for all lesions and for each kind."""
    sides = [f"{side:g}" for side in found["sides"]]
    below = ["0", *sides[:-1]]
    titles = [f"{low} to {high}" for low, high in zip(below, sides, strict=True)] + [f"over {sides[-1]}"]
    rows = []
    for lesion, name in ROWS.items():
        row = found[lesion]
        cells = zip(row["size_sensitivity"], row["size_boxes"], strict=True)
        texts = [f"{cell(share)} of {boxes}" if boxes else None for share, boxes in cells]
        rows.append({"lesion": name, **dict(zip(titles, texts, strict=True))})
    return pd.DataFrame(rows)


def between(low: float | None, high: float | None) -> str | None:
    """Return the text of an interval; None if it is not known."""
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"

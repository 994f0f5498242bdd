"""What the page says of the lesion detector: its tables and its FROC curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.errors import UserError
from drgrade.report.page import Page, cell
from drgrade.report.plots import froc_chart
from drgrade.schema import LESION_NAMES

ROWS = {"all": "all", **LESION_NAMES}
AT_ONE = "sensitivity at 1 false alarm"


def add_detector(page: Page, metrics: Mapping[str, Any], path: Path, out: Path) -> None:
    """Section of the detector: precision, F1 and sensitivity by lesion and by size, and ``froc.png``.

    Args:
        page: to add to.
        metrics: ``metrics.json`` of the stage detector.
        path: where they were read, for messages.
        out: folder of the figure.

    Raises:
        UserError: the metrics are of an older detector, without FROC.
    """
    if "froc" not in metrics:
        raise UserError(f"{path}: lacks the key 'froc'; run the stage detector again")
    found = metrics["froc"]
    unit, count = found["unit"], found["photographs"]
    froc_chart(found, out / "froc.png")
    page.section(
        "Lesion detector",
        f"On {count} validation photograph{'s' * (count != 1)}, {found['images']} {unit}s. A detection hits "
        "a lesion of its kind when their boxes overlap by an IoU of 0.5 or more; a second box on a lesion is "
        f"a false alarm. False alarms are counted for each {unit}. Score: the threshold of the highest F1, "
        "chosen on these very photographs, so precision, recall and F1 are a little too good.",
    )
    page.table(lesion_table(metrics), f"Validation {unit}s, all lesions and by kind")
    page.image(
        out / "froc.png",
        "FROC curves: sensitivity against false alarms, a line for each kind of lesion; read at 1 in the "
        "table above.",
        f"Share of the lesions found, by the number of false alarms for each {unit}. Grey: 95 % interval for "
        "all lesions, a bootstrap over photographs; drawn from 5 photographs on.",
    )
    page.table(
        size_table(found), f"Share of the lesions found at that score, by side in pixels of the {unit}"
    )


def lesion_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """A row for all lesions and for each kind: AP and its kin, and the figures at the chosen score."""
    found = metrics["froc"]
    one = found["rates"].index(1.0)
    rows = []
    for lesion, name in ROWS.items():
        precision = metrics if lesion == "all" else metrics["lesions"][lesion]
        row = found[lesion]
        rows.append(
            {
                "lesion": name,
                "boxes": row["boxes"],
                **{key: precision[key] for key in ("AP", "AP50", "AP75", "AR100")},
                AT_ONE: row["sensitivity"][one],
                "95 % interval": _interval(row["low"][one], row["high"][one]),
                "score": row.get("score"),
                **{key: row[key] for key in ("precision", "recall", "F1")},
            }
        )
    return pd.DataFrame(rows)


def size_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """A row for all lesions and for each kind, a column for each class of sides: share found, of how many."""
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


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"

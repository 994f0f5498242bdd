"""The report's section on lesion segmentation: metrics by kind of lesion, and a sheet of overlays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.report.detection import between, count
from drgrade.report.page import Page
from drgrade.schema import LESION_NAMES

ROWS = LESION_NAMES | {"mean": "mean over kinds"}


def add_segmentation(page: Page, measured: Mapping[str, Any], overlays: Path) -> None:
    """Add a section with AUPR, Dice and IoU by kind of lesion.

    Args:
        page: report page to extend.
        measured: ``metrics.json`` of the stage segmentation_metrics.
        overlays: image with drawn and predicted lesions, of the same stage.
    """
    split, kind = ("test", "test") if measured["test"] else ("val", "validation")
    found = measured[split]
    page.section(
        "Lesion segmentation",
        f"On {count(found['images'], f'{kind} photograph')} with masks, over all pixels. AUPR: area under "
        "the precision-recall curve; chance: AUPR of a random map. Dice, IoU, precision and recall are at "
        "the threshold with the best Dice on validation photographs"
        + ("." if split == "test" else ", the very ones measured here: they are a little too good."),
    )
    page.table(kind_table(found), f"{kind.capitalize()} photographs, by kind of lesion")
    page.image(
        overlays,
        "Photographs, drawn lesions, and lesions that the network marks, a colour for each kind.",
        f"The {kind} photographs with the most lesions: drawn by experts, and marked at this threshold.",
    )


def kind_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of the metrics: a row for each kind of lesion and one for their mean."""
    rows = []
    for name, title in ROWS.items():
        if name in found:
            row = found[name]
            rows.append(
                {
                    "lesion": title,
                    "photographs with it": row.get("with_lesion"),
                    "AUPR": row["aupr"],
                    "95 % interval": between(row["aupr_low"], row["aupr_high"]),
                    "chance": row["chance"],
                    "Dice": row["dice"],
                    "IoU": row["iou"],
                    "precision": row["precision"],
                    "recall": row["recall"],
                }
            )
    return pd.DataFrame(rows).astype({"photographs with it": "Int64"})

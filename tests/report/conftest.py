"""A finished run in miniature: every input of the stage report, with bad rows in it."""

import json

import numpy as np
import pandas as pd
import pytest

from drgrade import params, schema
from drgrade.images.shards import write_store
from drgrade.report.plots import confusion_chart, leaderboard_chart

SIZE = 48
GRADES = [0, 0, 1, 2, 2, 3, 4, None]
"""Grades of the photographs that have a crop; the last belongs to the segmentation part."""
BAD = [
    ("missing_1", "missing", "no photograph for this label"),
    ("missing_2", "missing", "no photograph for this label"),
    ("broken", "unreadable", "truncated <JPEG> & more"),
    ("unlabelled", "unlabelled", "no grade for this photograph"),
]
EXPERIMENTS = {"good": 0.71234, "majority": 0.0}


def _index():
    rows = [
        {
            "image_id": f"im_{place}",
            "path": f"{place}.jpg",
            "patient_id": f"p{place // 2}",
            "grade": grade,
            "subset": "grading" if grade is not None else "segmentation",
            "split": ["train", "val", "test"][place % 3],
            "status": "ok",
            "reason": "",
        }
        for place, grade in enumerate(GRADES)
    ]
    rows += [
        {"image_id": name, "patient_id": name, "subset": "grading", "status": status, "reason": reason}
        for name, status, reason in BAD
    ]
    return pd.DataFrame(rows).reindex(columns=list(schema.INDEX))


def _crops(index):
    rows = []
    for place, row in enumerate(index.itertuples()):
        ok = row.status == "ok"
        rows.append(
            {
                "image_id": row.image_id,
                "row": place if ok else None,
                # a crop box that reaches outside the photograph on the left
                **dict(zip(("x0", "y0", "x1", "y1"), (-20, 10, 76, 106) if ok else (None,) * 4, strict=True)),
                "scale": 0.5 if ok else None,
                "rule": "disc" if ok else None,
                "status": "ok" if ok else "failed",
                "reason": "" if ok else row.reason,
            }
        )
    return pd.DataFrame(rows)


def _lesions():
    boxes = [
        ("im_0", 30, 40, 40, 60, 0.9, "MA"),
        ("im_0", 0, 20, 10, 30, 0.8, "HE"),
        ("im_0", 50, 50, 60, 60, 0.1, "EX"),  # below patches.min_score
        ("im_7", 30, 40, 50, 60, 0.6, "SE"),
        ("elsewhere", 1, 1, 2, 2, 0.9, "MA"),
    ]
    return pd.DataFrame(boxes, columns=["image_id", "x1", "y1", "x2", "y2", "score", "lesion"])


def _metrics(qwk):
    return {
        **dict.fromkeys(("qwk", "accuracy", "balanced_accuracy", "macro_f1", "mae", "referable_auc"), qwk),
        "macro_auroc": qwk,
        "referable_auprc": qwk,
        "sight_threatening_auc": 0.8125,
        "sight_threatening_auprc": qwk,
        "referable_sensitivity_at_specificity_87": qwk,
        "ece": 0.1375,
        "ece_calibrated": 0.0625 if qwk else None,
        "brier": qwk,
        "brier_calibrated": None,
        "parameters": 3_371_024 if qwk else None,
        **dict.fromkeys(("train_minutes", "images_per_s")),
        "peak_memory_gb": 1.25 if qwk else None,
        "referable_sensitivity": None,
        "referable_specificity": 0.5,
        "qwk_low": qwk - 0.1,
        "qwk_high": qwk + 0.1,
        "qwk_sd": None,
        "qwk_fitted": qwk + 0.0222 if qwk else None,
        "fitted_gain": 0.0222 if qwk else None,
        "fitted_gain_low": -0.0111 if qwk else None,
        "fitted_gain_high": 0.0333 if qwk else None,
        "n": 7,
        "patients": 4,
        "grades": [{"grade": g, "n": 2 * g, "recall": 0.25 * g if g else None} for g in range(5)],
        "seeds": [{"seed": 3, "qwk": qwk}],
    }


def _curve(boxes, sensitivity):
    ends = {"low": [s and s / 2 for s in sensitivity], "high": [s and (1 + s) / 2 for s in sensitivity]}
    at_score = (
        {"precision": 0.5, "recall": 0.4, "F1": 0.444}
        if boxes
        else dict.fromkeys(("precision", "recall", "F1"))
    )
    return {
        "boxes": boxes,
        "sensitivity": sensitivity,
        **ends,
        **at_score,
        "size_boxes": [boxes, 0, 0, 0],
        "size_sensitivity": [0.4 if boxes else None, None, None, None],
        "AP50": 0.432 if boxes else None,
    }


def _detector():
    """Metrics of a detector that saw no soft exudate."""
    precision = {"AP": 0.123, "AP50": 0.345, "AP75": 0.056, "AR100": 0.234}
    kinds = dict.fromkeys(("MA", "HE", "EX"), precision)
    return {**precision, "lesions": kinds | {"SE": dict.fromkeys(precision)}}


def _lesion_metrics():
    """What it finds on six validation photographs, and on none for the test."""
    curve = [0.1, 0.2, 0.3, 0.414, 0.5, 0.6, 0.6]
    found = {
        "images": 6,
        "photographs": 6,
        "rates": [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
        "sides": [8.0, 16.0, 32.0],
        "all": _curve(27, curve),
        **{lesion: _curve(9, curve) | {"score": 0.321} for lesion in ("MA", "HE", "EX")},
        "SE": _curve(0, [None] * 7) | {"score": None},
    }
    return {"rule": "iou", "val": found, "test": None}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Keyword arguments of make_report, without ``out``."""
    root = tmp_path_factory.mktemp("run")
    index = _index()
    schema.write_table(index, root / "index.parquet", schema.INDEX)
    schema.write_table(_crops(index), root / "crops.parquet", schema.CROPS)
    schema.write_table(_lesions(), root / "lesions.parquet", schema.LESION_BOXES)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (len(GRADES), SIZE, SIZE, 3), dtype=np.uint8)
    write_store(pictures, root / "store.json")
    (root / "statistics.json").write_text(
        json.dumps({"source": "detector", "min_score": 0.3, "thresholds": {"0.3": {"images": 2}}})
    )
    (root / "detector.json").write_text(json.dumps(_detector()))
    (root / "lesion_metrics.json").write_text(json.dumps(_lesion_metrics()))
    metrics = {name: _metrics(qwk) for name, qwk in EXPERIMENTS.items()}
    (root / "metrics.json").write_text(json.dumps(metrics))
    table = pd.DataFrame([{"experiment": name, **values} for name, values in metrics.items()])
    table["seeds"] = 1
    for column in ("vs_majority", "vs_best", "vs_best_low", "vs_best_high"):
        table[column] = [0.1, None]
    table["p_vs_best_holm"] = [None, 0.0039]
    table.drop(columns="grades").to_csv(root / "leaderboard.csv", index=False)
    elsewhere = table.head(1).assign(dataset="other_site", drop=0.0876)
    elsewhere.drop(columns="grades").to_csv(root / "external.csv", index=False)
    seeds = {name: [qwk] for name, qwk in EXPERIMENTS.items()}
    leaderboard_chart(table, seeds, root / "figures/leaderboard.png")
    confusion_chart({"good": np.eye(5, dtype=int)}, root / "figures/confusion.png")
    (root / "cam").mkdir()
    (root / "cam/heat_maps.png").write_bytes((root / "figures/confusion.png").read_bytes())
    (root / "verdicts.png").write_bytes((root / "figures/confusion.png").read_bytes())
    values = params.check(
        {
            "experiments": {
                "good": {"start": "lesion_contrastive", "seeds": [3]},
                "majority": {"grader": "majority"},
            },
            "explanations": {"cam": {"experiment": "good"}},
            "report": {"sheet": 6},
        },
        "test",
    )
    return {
        "index": root / "index.parquet",
        "crops_table": root / "crops.parquet",
        "store": root / "store.json",
        "lesions": root / "lesions.parquet",
        "patches_statistics": [root / "statistics.json"],
        "detector_metrics": root / "detector.json",
        "lesion_metrics": root / "lesion_metrics.json",
        "leaderboard": root / "leaderboard.csv",
        "metrics": root / "metrics.json",
        "heat_maps": [root / "cam/heat_maps.png"],
        "params": values.model_dump(),
    }

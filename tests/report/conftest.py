"""A finished run in miniature: every input of the stage report, with bad rows in it."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from drgrade import params, schema
from drgrade.encoders import PACKAGED_SHA256
from drgrade.evaluate.curves import LEARNING_COLUMNS
from drgrade.evaluate.decisions import OPERATING_COLUMNS, SETS_COLUMNS
from drgrade.evaluate.errors import COLUMNS as ERROR_COLUMNS
from drgrade.images.dataset import CroppedDataset
from drgrade.images.shards import write_store
from drgrade.report.plots import confusion_chart, leaderboard_chart
from drgrade.report.stage import Inputs

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
ERRORS = [
    ("good", "im_2", 1, 3, 3.25, 0.4375),
    ("majority", "im_6", 4, 0, 0.0, 1.0),
]
"""Rows of errors.csv."""


def _index():
    rows = [
        {
            "image_id": f"im_{place}",
            "path": f"{place}.jpg",
            "width": 160,
            "height": 120,
            "quality": 0.5 + place / 20,
            **dict.fromkeys(("fov", "sharpness", "exposure", "contrast"), 0.5 + place / 20),
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
        "grades": [
            {
                "grade": g,
                "n": 2 * g,
                "recall": 0.25 * g if g else None,
                "predicted": [0.0] * g + [2.0 * g] + [0.0] * (4 - g),
            }
            for g in range(5)
        ],
        "seeds": [{"seed": 3, "qwk": qwk}],
        "val_qwk": qwk,
        "intervals": [{"metric": "accuracy", "low": 0.4375, "high": 0.9375}],
        "calibration": [
            {"method": "none", "ece": 0.1375, "brier": qwk, "reason": None},
            {"method": "temperature", "ece": 0.0625, "brier": 0.5, "reason": None},
            {"method": "isotonic", "ece": None, "brier": None, "reason": "2 photographs, of 100 needed"},
        ],
    }


def _operating(experiment, point, sensitivity):
    """The share of the positive calls that are right is not known."""
    row = {
        "experiment": experiment,
        "point": point,
        "calibration": "temperature",
        "threshold": 0.4375,
        "n": 7,
    }
    ends = {
        "sensitivity_low": 0.5,
        "sensitivity_high": 0.9375,
        "specificity_low": 0.25,
        "specificity_high": 1,
    }
    rates = {"sensitivity": sensitivity, "specificity": 0.8125, "npv": 0.6875, "val_sensitivity": 0.75}
    return row | ends | rates


def _evaluated(root):
    """The folder of the stage evaluate."""
    metrics = {name: _metrics(qwk) for name, qwk in EXPERIMENTS.items()}
    (root / "metrics.json").write_text(json.dumps(metrics))
    table = pd.DataFrame([{"experiment": name, **values} for name, values in metrics.items()])
    table["seeds"] = 1
    for column in ("vs_majority", "vs_best", "vs_best_low", "vs_best_high"):
        table[column] = [0.1, None]
    table["p_vs_best_holm"] = [None, 0.0039]
    table = table.drop(columns="grades")
    subgroups = {
        "dataset": "demo",
        "subgroup": "site",
        "value": "demo",
        "n": 7,
        "patients": 4,
        "referable": 4,
    }
    points = [("good", "specificity_87", 0.875), ("good", "youden", 0.9), ("majority", "specificity_87", 0.0)]
    sets = {"experiment": "good", "alpha": 0.1, "coverage": 0.9125, "coverage_low": 0.8, "coverage_high": 1}
    written = {
        "leaderboard": table,
        "external": table.head(1).assign(dataset="other_site", drop=0.0876),
        "subgroups": table.drop(columns=["n", "patients"]).assign(**subgroups),
        "operating": pd.DataFrame([_operating(*point) for point in points], columns=list(OPERATING_COLUMNS)),
        "sets": pd.DataFrame([sets], columns=list(SETS_COLUMNS)),
        "errors": pd.DataFrame(ERRORS, columns=list(ERROR_COLUMNS)),
        "learning_curves": pd.DataFrame(
            [("good", 3, None, epoch, 1 / epoch, 0.25) for epoch in (1, 2)], columns=list(LEARNING_COLUMNS)
        ),
    }
    for name, rows in written.items():
        rows.to_csv(root / f"{name}.csv", index=False)
    leaderboard_chart(
        table, {name: [qwk] for name, qwk in EXPERIMENTS.items()}, root / "figures/leaderboard.png"
    )
    confusion_chart({"good": np.eye(5, dtype=int)}, root / "figures/confusion.png")
    for name in ("roc", "reliability", "risk_coverage", "learning_curves"):
        (root / f"figures/{name}.png").write_bytes((root / "figures/confusion.png").read_bytes())


def _recorded(root):
    """What trainings and a pretraining record of their start: ``training.json`` and ``encoder.json``."""
    pretrained = {"weights": "results/encoder.safetensors", "sha256": "ab12"}
    packaged = {"weights": "imagenet", "sha256": PACKAGED_SHA256}
    files = {
        "good/seed3/training.json": {"experiment": "good", "seed": 3, "start": pretrained},
        "majority/seed0/training.json": {"experiment": "majority", "seed": 0, "start": {}},
        "lesion_contrastive/encoder.json": {"start": packaged},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(json.dumps(content))
    *trainings, encoder = (root / name for name in files)
    return {"trainings": trainings, "encoders": [encoder]}


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
def run(tmp_path_factory) -> Inputs:
    """All inputs of the report but the params."""
    root = tmp_path_factory.mktemp("run")
    data = CroppedDataset("demo", root / "demo")
    index = _index()
    schema.write_table(index, data.index_file, schema.INDEX)
    schema.write_table(_crops(index), data.crops_file, schema.CROPS)
    schema.write_table(_lesions(), root / "lesions.parquet", schema.LESION_BOXES)
    rng = np.random.default_rng(0)
    write_store(rng.integers(0, 255, (len(GRADES), SIZE, SIZE, 3), dtype=np.uint8), data.store_file)
    (root / "statistics.json").write_text(
        json.dumps({"source": "detector", "min_score": 0.3, "thresholds": {"0.3": {"images": 2}}})
    )
    (root / "detector.json").write_text(json.dumps(_detector()))
    (root / "lesion_metrics.json").write_text(json.dumps(_lesion_metrics()))
    (root / "evaluate").mkdir()
    _evaluated(root / "evaluate")
    example = (root / "evaluate/figures/confusion.png").read_bytes()
    (root / "cam/maps").mkdir(parents=True)
    (root / "cam/heat_maps.png").write_bytes(example)
    cv2.imwrite(str(root / "cam/maps/im_5.png"), np.full((60, 80), 128, np.uint8))
    (root / "verdicts.png").write_bytes(example)
    return Inputs(
        graded=data,
        pretrained=data,
        evaluated=root / "evaluate",
        heat_maps=[root / "cam/heat_maps.png"],
        lesions=root / "lesions.parquet",
        detector_metrics=root / "detector.json",
        lesion_metrics=root / "lesion_metrics.json",
        patches=[root / "statistics.json"],
        described=[data],
        **_recorded(root / "recorded"),
    )


@pytest.fixture(scope="session")
def values():
    """All params of that run."""
    checked = params.check(
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
    return checked.model_dump()

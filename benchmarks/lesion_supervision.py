"""Does it help a grader to learn from lesions? Three ways to do so, each against its image-only counterpart.

    uv run python benchmarks/lesion_supervision.py [--contrasts 1.0 0.3] [--quick]

Contrastive pretraining on detected lesions and DeepMT-DR start from ImageNet weights and are compared with
the same encoder fine-tuned from these weights. CLPI starts from random weights and is compared with the same
network, whose lesion network then learns from grades alone (``patch_weight: 0``). All are trained with 10 and
100 % of the labels and three seeds, on synthetic photographs with lesions that are easy (contrast 1) and hard
(0.3) to see. Heat maps of the models with all labels and the first seed are scored on
photographs with lesion masks that no network was trained on. Each contrast is one Snakemake run in a folder
of its own, .cache/drgrade/benchmarks/lesion_supervision/<contrast>; a run that was killed goes on where it
was. --quick: sizes that say nothing, to see it run. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ablation import RESAMPLES, Row, gain, read, shown, signed
from checkout import checkout

from drgrade.bootstrap import interval, resample_weights
from drgrade.schema import INDEX, read_table

WORK = Path(".cache/drgrade/benchmarks/lesion_supervision")
CONTRASTS = (1.0, 0.3)
SHARES = (0.1, 1.0)
SYSTEMS = {
    "image_only": "image only: EfficientNet-Lite0 from ImageNet",
    "contrastive": "the same after contrastive learning on detected lesions",
    "deepmt": "DeepMT-DR with the same encoder and start",
    "clpi_control": "CLPI without lesion labels, from random weights",
    "clpi": "CLPI, from random weights",
}
COUNTERPART = {"contrastive": "image_only", "deepmt": "image_only", "clpi": "clpi_control"}
"""What each way to learn from lesions is compared with."""
MAPS = {("cam", system): f"Grad-CAM, {system}" for system in SYSTEMS} | {
    ("gmsv", "deepmt"): "GMSV, deepmt",
    ("lesion_maps", "deepmt"): "its own lesion map, deepmt",
    ("lesion_maps", "clpi"): "its own lesion map, clpi",
}
"""Rows of the table of heat maps, by method and system."""
SCORES = {"auc": "pixel AUC", "pointing": "pointing game", "energy": "energy on lesions"}
SIZE = 192
"""Side of a crop in pixels: CLPI's input, and what DeepMT enlarges half of it to. Others see 128 px."""


def systems(share: float, quick: bool) -> dict[str, dict[str, Any]]:
    """Experiments of the systems with a share of the labels."""
    few = share < 1 and not quick
    one = {"epochs": 1} if quick else {}
    image_only = {"grader": "finetune", "start": "imagenet"} | one
    # the published losses and phases; narrow networks and few epochs, for a CPU. With few labels an epoch is
    # short: as many steps of grading as image_only, and more of restoration, which learns from masks
    deepmt: dict[str, Any] = {
        "grader": "deepmt", "encoder": "tf_efficientnet_lite0", "input_size": SIZE // 2, "scale": 2,
        "super_resolution_width": 8, "super_resolution_blocks": 2, "segmentation_width": 8,
        "checkpointing": False,
        "restoration": {"epochs": 1 if quick else 6 if few else 2, "batch_size": 4, "lr": 0.002},
        "grading": {"epochs": 1 if quick else 10 if few else 4, "batch_size": 8, "lr": 0.001},
        "joint": {"epochs": 1, "batch_size": 4},
    }  # fmt: skip
    clpi = {
        "grader": "clpi", "input_size": SIZE, "loss": "mse", "batch_size": 4, "epochs": 8, "lr": 0.0003,
        "patches": 4, "min_area": 1000,  # with the default of 8 hardly any patch of these eyes is normal
    }  # fmt: skip
    return {
        "image_only": image_only,
        "contrastive": image_only | {"start": "detected"},
        "deepmt": deepmt,
        "clpi_control": clpi | {"patch_weight": 0.0, "patches": 1} | one,
        "clpi": clpi | one,
    }


def params(contrast: float, quick: bool) -> dict[str, Any]:
    """A params file; defaults are filled in by Snakemake."""
    own = {"seeds": [0] if quick else [0, 1, 2]}
    experiments = {
        name(system, share): keys | own | {"label_fraction": share}
        for share in SHARES
        for system, keys in systems(share, quick).items()
    }
    explanations = {
        f"{method}_{system}": {"method": method, "experiment": name(system, 1.0), "images": 16}
        for method, system in MAPS
    }
    patients, masked = (24, 16) if quick else (160, 64)
    return {
        "datasets": {"demo": {}},
        "roles": dict.fromkeys(("lesions", "pretrain", "grade"), "demo") | {"external": []},
        "download": {
            "demo": {"patients": patients, "segmentation": masked, "lesion_contrast": contrast},
        },
        "index": {"val_fraction": 0.12, "test_fraction": 0.5},  # tests are cheap, trainings are not
        "crop": {"size": SIZE},
        "detector": {"epochs": 4, "batch_size": 2 if quick else 4},  # fewer steps find no lesions
        "patches": {"size": SIZE // 4},
        "pretrain": {
            "detected": {
                "method": "lesion_contrastive", "boxes": "detector", "boxes_per_image": 4, "batch_size": 64,
                "epochs": 1 if quick else 12,
            },
        },
        "grade": {"input_size": 128, "epochs": 10, "batch_size": 8, "lr": 0.001},
        "experiments": experiments,
        "explanations": explanations,
        "evaluate": {"bootstrap": RESAMPLES},
    }  # fmt: skip


def name(system: str, share: float) -> str:
    """Of an experiment."""
    return f"{system}_{round(100 * share):03d}"


def run(contrast: float, quick: bool) -> Path:
    """Everything, in a folder that looks like a checkout."""
    folder = WORK / f"{contrast}{'_quick' * quick}"
    values = checkout(folder, params(contrast, quick))
    wanted = ["results/demo/evaluate/leaderboard.csv"]
    wanted += [f"results/demo/explain/{explanation}/scores.json" for explanation in values["explanations"]]
    side_by_side = ["--resources", "gpu=2", "--set-threads", "pretrain=1", "grade=1"]
    subprocess.run(
        ["snakemake", "--cores", str(os.cpu_count()), *side_by_side, "--", *wanted],
        cwd=folder,
        check=True,
        stdout=sys.stderr,
        env=os.environ | {"DRGRADE_THREADS": "1"},
    )
    return folder


def graded(folder: Path) -> dict[str, Row]:
    """Test QWK of each experiment; all draw the same patients."""
    experiments = [name(system, share) for system in SYSTEMS for share in SHARES]
    return {experiment: read(folder, experiment) for experiment in experiments}


def split_sizes(folder: Path) -> str:
    """How many photographs of how many patients there are for training, validation and the test."""
    index = read_table(folder / "results/demo/index/index.parquet", INDEX)
    counts = index[index["status"] == "ok"].groupby(["subset", "split"])[["image_id", "patient_id"]].nunique()
    return ", ".join(f"{' '.join(part)}: {n} of {m} patients" for part, (n, m) in counts.T.items())


def print_grades(rows: dict[str, Row]) -> None:
    """Print QWK of each system, and the paired difference from its counterpart."""
    print("\n| system | labels | QWK (95 % interval, sd over seeds) | against its counterpart |")
    print("|---|---|---|---|")
    for system in SYSTEMS:
        for share in SHARES:
            row, against = rows[name(system, share)], ""
            if system in COUNTERPART:
                against = signed(gain(row, rows[name(COUNTERPART[system], share)]))
            print(f"| {SYSTEMS[system]} | {share:.0%} | {shown(row)} | {against} |")


def held_out(folder: Path, explanation: str) -> pd.DataFrame:
    """Scores of a heat map on photographs with masks outside the training split, one row each."""
    index = read_table(folder / "results/demo/index/index.parquet", INDEX).set_index("image_id")
    path = folder / f"results/demo/explain/{explanation}/scores.json"
    table = pd.DataFrame.from_dict(json.loads(path.read_text())["photographs"], orient="index")
    return table[index["split"].reindex(table.index) != "train"].sort_index()


def estimate(values: Iterable[float], sign: str = "") -> str:
    """Mean over photographs and its 95 % bootstrap interval; ``sign`` is of the number format."""
    values = np.asarray(list(values))
    draws = np.concatenate([weights @ values for weights in resample_weights(len(values), RESAMPLES, 1)])
    low, high = interval(draws / len(values))
    return f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def print_maps(folder: Path) -> None:
    """Print how well each heat map locates lesions, beside maps that know nothing of the photograph."""
    tables = {what: held_out(folder, f"{method}_{system}") for (method, system), what in MAPS.items()}
    first = next(iter(tables.values()))
    print(f"\n| map, {len(first)} photographs | {' | '.join(SCORES.values())} | AUC minus centre prior |")
    print("|---|---|---|---|---|")
    for what, table in tables.items():
        cells = [estimate(table[score]) for score in SCORES]
        print(f"| {what} | {' | '.join(cells)} | {estimate(table['auc'] - table['prior_auc'], '+')} |")
    for prefix, what in (("prior", "centre prior"), ("random", "random map")):
        cells = [f"{first[f'{prefix}_{score}'].mean():.3f}" for score in SCORES]
        print(f"| {what} | {' | '.join(cells)} |  |")


def overall(found: Sequence[dict[str, Row]]) -> dict[str, Any]:
    """The last line: all ways to learn from lesions, over shares of labels and contrasts."""
    pairs = [
        (rows[name(system, share)], rows[name(other, share)])
        for rows in found
        for system, other in COUNTERPART.items()
        for share in SHARES
        if name(system, share) in rows
    ]
    value, baseline = np.mean([[np.mean(row.seeds) for row in pair] for pair in pairs], axis=0).tolist()
    low, high = interval(np.mean([row.draws - other.draws for row, other in pairs], axis=0))
    gains = [gain(*pair) for pair in pairs]
    return {
        "name": "lesion_supervision",
        "value": round(value, 3),
        "unit": "QWK, mean over all ways to learn from lesions; baseline: their image-only counterparts",
        "baseline": round(baseline, 3),
        "ratio": round(value / baseline, 3) if baseline > 0 else None,
        "target": "the difference above 0 with its 95 % interval",
        "difference": [round(float(one), 3) for one in (value - baseline, low, high)],
        "intervals_above_0": sum(one > 0 for _, one, _ in gains),
        "intervals_below_0": sum(one < 0 for _, _, one in gains),
        "comparisons": len(gains),
        "holds": bool(low > 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--contrasts", type=float, nargs="+", default=list(CONTRASTS))
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing, to see it run")
    arguments = parser.parse_args()
    found = []
    for contrast in dict.fromkeys(arguments.contrasts):
        folder = run(contrast, arguments.quick)
        print(f"\nlesion_contrast {contrast}: {split_sizes(folder)}")
        found.append(graded(folder))
        print_grades(found[-1])
        print_maps(folder)
    print(json.dumps(overall(found)))


if __name__ == "__main__":
    main()

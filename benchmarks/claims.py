"""What the papers claim of their pretraining, under one protocol: QWK by share of labels, two graders.

    uv run python benchmarks/claims.py [--quick]
    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/claims.py --dataset idrid

On the demo eight starts (random, ImageNet, SimCLR on whole photographs, contrastive on random boxes, on
detected lesions and on true lesions, local-to-global and what it began from) are graded by a linear probe and
by fine-tuning, with 1, 5, 10, 25 and 100 % of the labels and three seeds. Each pretraining goes on from
ImageNet's weights, except the vision transformer's, for which none are packaged, and takes about as long as
the others. On IDRiD it is the central claim alone: lesions against random boxes against no pretraining, with
10 and 100 % of the labels, by ridge regression on frozen features and by fine-tuning. All 413
official training photographs are tested once, in three folds that keep blocks of numbers and copies together;
lesions are those that the segmentation marks. It is one Snakemake run in a folder of its own,
.cache/drgrade/benchmarks/claims/<dataset>; a run that was killed goes on where it was. --quick: sizes that
say nothing, to see it run. The last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from checkout import ROOT, checkout, side_by_side
from matplotlib.figure import Figure

from drgrade.bootstrap import interval
from drgrade.evaluate.fitted import tested
from drgrade.evaluate.measures import qwk_draws, seed_values
from drgrade.evaluate.predictions import Measured, gather
from drgrade.params import Evaluate

WORK = Path(".cache/drgrade/benchmarks/claims")
LITE, VIT = "tf_efficientnet_lite0", "vit_tiny_patch16_224"
STARTS = {
    "random": "random weights",
    "imagenet": "ImageNet",
    "simclr": "SimCLR, whole photographs",
    "chance": "contrastive, random boxes",
    "detected": "contrastive, detected lesions",
    "drawn": "contrastive, true lesions",
    "random_vit": "random weights, ViT-Ti/16",
    "local_to_global": "local-to-global, ViT-Ti/16",
}
STARTS_OF = {"demo": tuple(STARTS), "idrid": ("imagenet", "chance", "detected")}
GRADERS = {"linear": "linear probe", "ridge": "ridge regression, frozen", "finetune": "fine-tuned"}
GRADERS_OF = {"demo": ("linear", "finetune"), "idrid": ("ridge", "finetune")}
SHARES_OF = {"demo": (0.01, 0.05, 0.1, 0.25, 1.0), "idrid": (0.1, 1.0)}
SHARES = SHARES_OF["demo"]
FOLDS = 3
"""On IDRiD."""
Found = dict[str, tuple[Measured, np.ndarray]]
"""Predictions of each experiment, and the bootstrap of its mean QWK."""
CLAIM = ("detected", "chance")
"""What lesion-based learning rests on: detected lesions are better to learn from than boxes anywhere."""


def pretraining(dataset: str, quick: bool) -> dict[str, Any]:
    """The block pretrain. Epochs make each take some minutes of two cores; with folds, one encoder a fold."""
    lesions = 1 if quick else {"demo": 30, "idrid": 4}[dataset]
    pairs = {"method": "lesion_contrastive", "boxes_per_image": 4, "batch_size": 64, "epochs": lesions}
    vit: dict[str, Any] = {
        "encoder": VIT,
        "start": "random",
        "global_size": 96,
        "local_size": 48,
        "batch_size": 16,
    }
    vit |= {"out_dim": 2048, "local_crops": 4, "preset": "lesion"}
    vit |= {"epochs": 2 if quick else 12, "warmup_epochs": 1 if quick else 2, "lr": 0.004}
    blocks = {
        "simclr": {"input_size": 128, "batch_size": 32, "epochs": 1 if quick else 40},
        "chance": pairs | {"boxes": "random"},
        "detected": pairs | {"boxes": "detector"},
        "drawn": pairs | {"boxes": "masks"},
        "local_to_global": vit,
    }
    return {key: block for key, block in blocks.items() if key in STARTS_OF[dataset]}


def experiments(dataset: str, quick: bool) -> dict[str, Any]:
    """The block experiments: every start, grader and share of labels."""
    found: dict[str, Any] = {"majority": {"grader": "majority"}}
    for start, grader, share in product(STARTS_OF[dataset], GRADERS_OF[dataset], SHARES_OF[dataset]):
        encoder = VIT if start in ("random_vit", "local_to_global") else LITE
        found[name(start, grader, share)] = {
            "grader": grader, "encoder": encoder, "start": start.removesuffix("_vit"),
            "label_fraction": share, "seeds": [0] if quick else [0, 1, 2],
        } | own_keys(dataset, grader, encoder, share, quick)  # fmt: skip
    return found


def params(dataset: str, quick: bool) -> dict[str, Any]:
    """A params file; defaults are filled in by Snakemake."""
    values: dict[str, Any] = {
        "datasets": {dataset: {}},
        "roles": dict.fromkeys(("lesions", "pretrain", "grade"), dataset) | {"external": []},
        "pretrain": pretraining(dataset, quick),
        "grade": {
            "input_size": 128, "epochs": 1 if quick else 10, "batch_size": 8, "lr": 0.001,
        },
        "experiments": experiments(dataset, quick),
        "explanations": {"cam": {"experiment": name("imagenet", "finetune", 1.0), "images": 2}},
        "evaluate": {"bootstrap": 2000},
    }  # fmt: skip
    return values | (of_idrid(values, quick) if dataset == "idrid" else of_demo(quick))


def of_demo(quick: bool) -> dict[str, Any]:
    """Blocks for the demo."""
    patients = 24 if quick else 240
    return {
        "lesion_boxes": {"tile": 384, "scale": 1.0},
        "detector": {"config": "rtmdet-tiny_tiles", "epochs": 7, "batch_size": 4, "lr": 0.002},
        "segmentation": {"use": False},
        "download": {"demo": {"patients": patients, "segmentation": 16 if quick else 32, "masks": "all"}},
    }


def of_idrid(values: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Blocks for IDRiD.

    14 of the 18 photographs with masks are copies of graded ones, which is why overlaps of content do not
    stop the run. No test photograph is pretrained on; but the network that marks lesions on the training
    photographs of a fold may have learned from the mask of a tested one.
    """
    own = yaml.safe_load((ROOT / "params/idrid.yaml").read_text())
    segmentation = own["segmentation"] | {"epochs": 1 if quick else 12}
    return {
        "datasets": {"idrid": {"numbers_per_patient": 8}},
        "index": {"scheme": "kfold", "folds": FOLDS},
        "overlaps": {"refuse": ["image", "patient"]},
        "crop": own["crop"],
        "lesion_boxes": own["lesion_boxes"],
        "segmentation": segmentation,
        "lesions": {"source": "segmentation"},
        "patches": {"size": 128, "min_score": 0.8},
        "grade": values["grade"] | {"input_size": 160, "batch_size": 16, "select": "last"},
    }


def own_keys(dataset: str, grader: str, encoder: str, share: float, quick: bool) -> dict[str, Any]:
    """Keys of an experiment that are its grader's own."""
    if grader == "linear":
        return {"lr": [0.001, 0.003, 0.01, 0.03], "epochs": 5 if quick else 100, "batch_size": 32}
    if grader == "ridge":
        return {"input_size": 448, "layers": [-2, -1], "pooling": ["mean"], "seeds": [0]}
    if dataset == "idrid" and not quick:
        return {"seeds": [0], "epochs": 10 if share == 1 else 40}
    return {"lr": 0.0003} if encoder == VIT else {}


def name(start: str, grader: str, share: float) -> str:
    """Of an experiment."""
    return f"{start}_{grader}_{round(100 * share):03d}"


def run(dataset: str, quick: bool, train: bool) -> tuple[Path, dict[str, Any]]:
    """Everything, in a folder that looks like a checkout; returns it and its params."""
    folder = WORK / f"{dataset}{'_quick' * quick}"
    values = checkout(folder, params(dataset, quick))
    if not train:
        return folder, values
    side_by_side(folder, "pretrain", "grade")
    return folder, values


def read(folder: Path, dataset: str, experiments: dict[str, Any]) -> Found:
    """Predictions of each finished experiment and bootstrap of its mean QWK; all draw the same patients."""
    found = {}
    for experiment, values in experiments.items():
        paths = sorted((folder / f"results/{dataset}/grade/{experiment}").glob("*/predictions.parquet"))
        if len(paths) < len(values["seeds"]) * (FOLDS if dataset == "idrid" else 1):
            print(f"{experiment} is not finished", file=sys.stderr)
            continue
        measured = tested(experiment, gather(paths)[experiment], {})
        found[experiment] = measured, qwk_draws(measured, Evaluate(bootstrap=2000))
    return found


def tables(found: Found) -> None:
    """Prints a table for each grader: starts by shares of labels."""
    for grader, label in GRADERS.items():
        shares = [share for share in SHARES if name("imagenet", grader, share) in found]
        if not shares:
            continue
        print(f"\n| {label} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
        print("|---|" + "---|" * len(shares))
        for start, what in STARTS.items():
            cells = [found.get(name(start, grader, share)) for share in shares]
            if all(cells):
                print(f"| {what} | " + " | ".join(cell(*one) for one in cells if one) + " |")


def cell(measured: Measured, draws: np.ndarray) -> str:
    """Mean QWK over seeds, its 95 % interval over patients, and the standard deviation over seeds."""
    each = seed_values(measured)
    low, high = interval(draws)
    spread = f", sd {np.std(each, ddof=1):.2f}" if len(each) > 1 else ""
    return f"{np.mean(each):.3f} ({low:.3f} to {high:.3f}{spread})"


def gain(found: Found, first: str, second: str) -> tuple[float, float, float]:
    """How much higher the first QWK is, with its 95 % interval: the same patients drawn for both."""
    one, other = found[first], found[second]
    low, high = interval(one[1] - other[1])
    return float(np.mean(seed_values(one[0])) - np.mean(seed_values(other[0]))), low, high


def chart(found: Found, graders: Sequence[str], path: Path) -> None:
    """Draws QWK by share of labels, a panel for each grader; bars are 95 % intervals."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(graders), sharey=True)
    ticks = [share for share in SHARES if name("imagenet", graders[0], share) in found]
    for panel, grader in zip(panels, graders, strict=True):
        for place, (start, what) in enumerate(STARTS.items()):
            shares = [share for share in SHARES if name(start, grader, share) in found]
            if shares:
                each = [found[name(start, grader, share)] for share in shares]
                means = np.array([np.mean(seed_values(measured)) for measured, _ in each])
                low, high = np.array([interval(draws) for _, draws in each]).T
                beside = np.array(shares) * 1.04 ** (place - len(STARTS) / 2)  # bars must not hide each other
                bars = np.clip([means - low, high - means], 0, None)
                panel.errorbar(beside, means, bars, label=what, marker="o", markersize=4, linewidth=1)
        panel.set(title=GRADERS[grader], xscale="log", xlabel="share of labels")
        panel.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("quadratic weighted kappa, test")
    panels[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def differences(found: Found) -> None:
    """Prints each start against ImageNet, and detected lesions against random boxes, by share of labels."""
    pairs = [(start, "imagenet") for start in STARTS if start != "imagenet"]
    pairs += [CLAIM, ("local_to_global", "random_vit")]
    print("\n| first minus second | grader | labels | QWK | 95 % interval |\n|---|---|---|---|---|")
    for first, second in pairs:
        for grader, label in GRADERS.items():
            for share in SHARES:
                names = name(first, grader, share), name(second, grader, share)
                if all(one in found for one in names):
                    value, low, high = gain(found, *names)
                    row = f"{label} | {share:.0%} | {value:+.3f} | {low:+.3f} to {high:+.3f}"
                    print(f"| {first} - {second} | {row} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", choices=("demo", "idrid"), default="demo")
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing, to see it run")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is finished")
    arguments = parser.parse_args()
    folder, values = run(arguments.dataset, arguments.quick, not arguments.report)
    found = read(folder, arguments.dataset, values["experiments"])
    measured = next(iter(found.values()))[0]
    print(f"{len(measured.grades)} test photographs of {len(set(measured.patients))} patients")
    tables(found)
    differences(found)
    chart(found, GRADERS_OF[arguments.dataset], folder / "claims.png")
    grader = GRADERS_OF[arguments.dataset][0]
    one, other = (name(start, grader, 1.0) for start in CLAIM)
    value, low, _ = gain(found, one, other)
    means = [float(np.mean(seed_values(found[each][0]))) for each in (one, other)]
    result = {
        "name": "claims",
        "value": round(means[0], 3),
        "unit": f"QWK, {GRADERS[grader]}, all labels, contrastive on detected lesions; baseline: on random "
        "boxes",
        "baseline": round(means[1], 3),
        "ratio": round(means[0] / means[1], 3),
        "target": "the difference above 0 with its 95 % interval",
        "difference": round(value, 3),
        "holds": bool(low > 0),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

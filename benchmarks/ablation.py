"""What each part of o_O's solution adds, from one network to the whole, at 128, 256 and 512 px.

    uv run python benchmarks/ablation.py [--sizes 128 256 512] [--quick]

Steps: features over several transforms, their deviation, the fellow eye, six blends in place of one, fitted
thresholds. Synthetic photographs, both eyes of each patient, whose grades are correlated. The networks grow
from 128 to 512 px as published, with a leak of 0.33, with which they learn from few photographs, and without
the final ReLU. Blends are fitted on features of photographs that the network was trained on, as published; at
the first size also on out-of-fold features, from three networks that each left out a third of the training
patients. Three seeds. Every step is compared with the one before it on the same bootstrap resamples of the
test patients. It is one Snakemake run in a folder of its own, .cache/drgrade/benchmarks/ablation; a run that
was killed goes on where it was. --quick: sizes that say nothing, to see it run. The last line is one JSON
object.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkout import checkout

from drgrade.bootstrap import interval
from drgrade.evaluate.fits import by_whose, fit_experiment
from drgrade.evaluate.fitted import tested
from drgrade.evaluate.intervals import bootstrap
from drgrade.evaluate.metrics import qwk
from drgrade.evaluate.predictions import gather
from drgrade.params import Calibrate
from drgrade.schema import INDEX, read_table

WORK = Path(".cache/drgrade/benchmarks/ablation")
SIZES = (128, 256, 512)
KERNELS = ("4x4", "5x5")
CHECKPOINTS = ("best_mse", "best", "last")
EPOCHS, BATCH, TRANSFORMS = {128: 25, 256: 6, 512: 3}, {128: 16, 256: 16, 512: 8}, {128: 4, 256: 4, 512: 2}
"""Passes over the photographs, batch size and transforms, by size: what a CPU can do in some hours."""
LR = {128: 3e-3, 256: 3e-3, 512: 1e-3}
"""At 512 px the published 0.003 diverged with these small batches."""
MAXOUT = {"grader": "blend", "batch_size": 16, "epochs": 200}
"""o_O's blend; the published 100 epochs of batches of 128 are few steps for few photographs."""
PUBLISHED_EPOCHS = 201
RESAMPLES = 2000
STEPS = {
    "network": "one network (4x4)",
    "transforms": "+ blend of its features, means over {transforms} transforms",
    "deviation": "+ their standard deviations",
    "fellow": "+ the fellow eye",
    "ensemble": "+ six blends: two networks, three checkpoints",
    "thresholds": "+ thresholds fitted on validation",
}
"""Rows of the table, each compared with the one above it."""
OTHERS = {
    "ridge": "ridge regression",
    "boosting": "regression trees",
    "fusion": "eye-pair head of Huang 2023",
}
"""Other models on the features of the step ``fellow``, in place of o_O's blend network; at the first size."""


class Row(NamedTuple):
    """Test QWK of a step: one for each seed, and on each bootstrap resample the mean over seeds."""

    seeds: list[float]
    draws: np.ndarray


def network(size: int, kernel: str, quick: bool) -> dict[str, Any]:
    """The experiment of one network."""
    epochs = 1 if quick else EPOCHS[size]
    start = {} if size == SIZES[0] else {"start": f"experiment:net_{size // 2}_{kernel}"}
    return start | {
        "grader": "o_o", "encoder": f"o_o_{size}_{kernel}", "leak": 0.33, "linear_output": True,
        "epochs": epochs, "batch_size": BATCH[size], "lr": LR[size], "checkpoints": list(CHECKPOINTS),
        "schedule": {"name": "multi_step", "milestones": [max(1, round(0.8 * epochs))]},
        # as far along at the end as after the published epochs
        "sampling": {"strategy": "o_o", "decay": round(0.975 ** (PUBLISHED_EPOCHS / EPOCHS[size]), 4)},
    }  # fmt: skip


def blends(size: int, *, out_of_fold: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The steps after the network: experiments, and the feature sets they read."""
    prefix = "" if out_of_fold else "published_"
    features = {
        f"{prefix}f_{size}_{kernel}_{checkpoint}": {
            "experiment": f"net_{size}_{kernel}", "checkpoint": checkpoint, "out_of_fold": out_of_fold,
            "transforms": TRANSFORMS[size], "skip": place * TRANSFORMS[size],
        }
        for kernel in KERNELS
        for place, checkpoint in enumerate(CHECKPOINTS)
    }  # fmt: skip
    one = {"grader": "blend", "features": [f"{prefix}f_{size}_4x4_best"]}
    experiments = {f"blend_{name}": MAXOUT | {"features": [name]} for name in features} | {
        f"{prefix}transforms_{size}": MAXOUT | one | {"per_patient": False, "std": False},
        f"{prefix}deviation_{size}": MAXOUT | one | {"per_patient": False},
        f"{prefix}ensemble_{size}": {"grader": "ensemble", "members": [f"blend_{name}" for name in features]},
    }
    if size == SIZES[0]:
        experiments |= {f"{prefix}{model}_{size}": one | {"model": model} for model in OTHERS}
    return experiments, features


def params(sizes: Sequence[int], quick: bool) -> dict[str, Any]:
    """A params file; defaults are filled in by Snakemake."""
    experiments: dict[str, Any] = {"majority": {"grader": "majority"}}
    features: dict[str, Any] = {}
    for size in [one for one in SIZES if one <= max(sizes)]:
        experiments |= {f"net_{size}_{kernel}": network(size, kernel, quick) for kernel in KERNELS}
    for size in sizes:
        for out_of_fold in (False, True) if size == SIZES[0] else (False,):
            steps, sets = blends(size, out_of_fold=out_of_fold)
            experiments, features = experiments | steps, features | sets
    for kernel in KERNELS:
        experiments[f"net_{SIZES[0]}_{kernel}"]["out_of_fold"] = 2 if quick else 3
    for experiment in experiments.values():
        experiment["seeds"] = [0] if quick else [0, 1, 2]
    return {
        "datasets": {"demo": {}},
        "roles": dict.fromkeys(("lesions", "pretrain", "grade"), "demo") | {"external": []},
        "download": {"demo": {"patients": 24 if quick else 200, "segmentation": 0}},
        "crop": {"size": 512},
        "pretrain": {},
        "experiments": experiments,
        "features": features,
        "explanations": {},
        "evaluate": {"bootstrap": RESAMPLES},
    }


def run(sizes: Sequence[int], quick: bool) -> Path:
    """Everything, in a folder that looks like a checkout."""
    folder = WORK / ("quick" if quick else "demo")
    checkout(folder, params(sizes, quick))
    subprocess.run(
        ["snakemake", "--cores", str(os.cpu_count()), "--", "results/demo/evaluate/leaderboard.csv"],
        cwd=folder,
        check=True,
        stdout=sys.stderr,
        env=os.environ | {"DRGRADE_THREADS": "1"},  # trainings side by side, one thread each
    )
    return folder


def read(folder: Path, experiment: str, *, fitted: bool = False) -> Row:
    """Test QWK of an experiment at the midpoints, or at thresholds fitted on validation."""
    paths = sorted((folder / f"results/demo/grade/{experiment}").glob("seed?/predictions.parquet"))
    table = gather(paths)[experiment]
    measured = tested(experiment, table, by_whose(fit_experiment(experiment, table, Calibrate())))
    predicted = measured.predicted
    if fitted:
        assert measured.fitted is not None
        predicted = measured.fitted
    draws = bootstrap(measured.grades, predicted, measured.patients, RESAMPLES, 1)
    return Row([qwk(measured.grades, one) for one in predicted], draws)


def ladder(folder: Path, size: int, prefix: str) -> dict[str, Row]:
    """The rows of one size; ``prefix`` as in :func:`blends`."""
    return {
        "network": read(folder, f"net_{size}_4x4"),
        "transforms": read(folder, f"{prefix}transforms_{size}"),
        "deviation": read(folder, f"{prefix}deviation_{size}"),
        "fellow": read(folder, f"blend_{prefix}f_{size}_4x4_best"),
        "ensemble": read(folder, f"{prefix}ensemble_{size}"),
        "thresholds": read(folder, f"{prefix}ensemble_{size}", fitted=True),
    }


def shown(row: Row) -> str:
    """Mean QWK over seeds, its 95 % interval over patients, and the standard deviation over seeds."""
    low, high = interval(row.draws)
    spread = f", sd {np.std(row.seeds, ddof=1):.3f}" if len(row.seeds) > 1 else ""
    return f"{np.mean(row.seeds):.3f} ({low:.3f} to {high:.3f}{spread})"


def gain(row: Row, before: Row) -> tuple[float, float, float]:
    """Difference of two steps, with its 95 % interval on the same resamples."""
    low, high = interval(row.draws - before.draws)
    return float(np.mean(row.seeds) - np.mean(before.seeds)), float(low), float(high)


def signed(values: tuple[float, float, float]) -> str:
    """A difference and its interval."""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)


def tables(folder: Path, sizes: Sequence[int]) -> dict[int, dict[str, Row]]:
    """Print the steps of each size, the sizes side by side, and other models in place of the blend."""
    index = read_table(folder / "results/demo/index/index.parquet", INDEX)
    graded = index[index["status"] == "ok"].groupby("split")[["image_id", "patient_id"]].nunique()
    print(", ".join(f"{split}: {n} photographs of {m} patients" for split, (n, m) in graded.T.items()))
    found = {size: ladder(folder, size, "published_") for size in sizes}
    for size, rows in found.items():
        print_ladder(f"{size} px", size, rows)
    for smaller, larger in pairwise(sizes):
        for step in STEPS:
            difference = signed(gain(found[larger][step], found[smaller][step]))
            print(f"\n{larger} px against {smaller} px, {step}: {difference}")
    if SIZES[0] in found:
        seen, unseen = found[SIZES[0]], ladder(folder, SIZES[0], "")
        print_ladder(f"{SIZES[0]} px, out-of-fold features", SIZES[0], unseen)
        for step in ("fellow", "ensemble", "thresholds"):
            print(f"\nout of fold against published, {step}: {signed(gain(unseen[step], seen[step]))}")
        for title, prefix, rows in (
            ("published", "published_", seen),
            ("out of fold", "", unseen),
        ):
            print_others(folder, title, prefix, rows["fellow"])
    return found


def print_ladder(title: str, size: int, rows: dict[str, Row]) -> None:
    """Print the steps, each against the one before it."""
    print(f"\n| {title} | QWK (95 % interval, sd over seeds) | against the row above |\n|---|---|---|")
    before: Row | None = None
    for step, what in STEPS.items():
        against = signed(gain(rows[step], before)) if before else ""
        print(f"| {what.format(transforms=TRANSFORMS[size])} | {shown(rows[step])} | {against} |")
        before = rows[step]


def print_others(folder: Path, title: str, prefix: str, blend: Row) -> None:
    """Print other models on the features of the step ``fellow``."""
    print(f"\n| in place of o_O's blend, {SIZES[0]} px, {title} | QWK | against o_O's |\n|---|---|---|")
    for model, what in OTHERS.items():
        other = read(folder, f"{prefix}{model}_{SIZES[0]}")
        print(f"| {what} | {shown(other)} | {signed(gain(other, blend))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing, to see it run")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.sizes))
    folder = run(sizes, arguments.quick)
    rows = tables(folder, sizes)[sizes[-1]]
    value, low, high = gain(rows["thresholds"], rows["network"])
    means = [float(np.mean(rows[step].seeds)) for step in ("thresholds", "network")]
    result = {
        "name": "ablation",
        "value": round(means[0], 3),
        "unit": f"QWK, all steps at {sizes[-1]} px; baseline: one network",
        "baseline": round(means[1], 3),
        "ratio": round(means[0] / means[1], 3) if means[1] else None,
        "target": "the difference above 0 with its 95 % interval",
        "difference": [round(one, 3) for one in (value, low, high)],
        "holds": low > 0,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

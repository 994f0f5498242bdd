"""Two runs of the demo leave the same bytes, whatever the number of cores; and how far seeds differ.

    uv run python benchmarks/same_result.py [--seeds 5] [--cores 4 1]

Runs the pipeline of params.yaml in two empty folders, with two numbers of ``--cores``: other numbers of jobs
at once, of processes that crop and of threads that read. Every experiment trains with the seeds 0, 1, ...
Every file below ``results/`` is then compared by its SHA-256, except those that hold times. What both runs
agree on holds for this type of CPU: another rounds differently. Then QWK of each experiment is printed by
seed. The last line is one JSON object; its value is the number of files that differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from checkout import ROOT, checkout

from drgrade.evaluate.metrics import confusion, kappa
from drgrade.files import sha256
from drgrade.params import read_yaml

TIMED = {"cost.json", "costs.csv", "leaderboard.md", "leaderboard.html", ".snakemake_timestamp"}
"""Files that say how long something took, which DVC does not record either."""


def run(folder: Path, cores: int, seeds: int) -> dict[str, str]:
    """Run the demo in a folder; return the digest of each file by its path."""
    params = read_yaml(ROOT / "params.yaml")
    for name, values in params["experiments"].items():
        if name != "majority":
            values["seeds"] = list(range(seeds))
    checkout(folder, params)
    command = ["snakemake", "--cores", str(cores), "--resources", "gpu=1"]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    files = sorted(path for path in (folder / "results").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files if path.name not in TIMED}


def by_seed(folder: Path) -> dict[str, list[float]]:
    """Return the QWK of each experiment on the test photographs, by seed."""
    values: dict[str, list[float]] = {}
    for path in sorted((folder / "results").glob("*/grade/*/seed*/predictions.parquet")):
        table = pd.read_parquet(path).query("split == 'test'")
        values.setdefault(path.parts[-3], []).append(
            float(kappa(confusion(table["grade"], table["predicted"]), "quadratic"))
        )
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cores", type=int, nargs=2, default=[4, 1], metavar=("A", "B"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folders = {cores: Path(work) / f"cores{cores}" for cores in arguments.cores}
        first, second = (run(folder, cores, arguments.seeds) for cores, folder in folders.items())
        spread = by_seed(next(iter(folders.values())))
    differing = sorted(path for path in first.keys() | second if first.get(path) != second.get(path))
    print(f"--cores {' and '.join(map(str, folders))}: {len(first)} files, {len(differing)} differ")
    for path in differing:
        print(path)
    print("| experiment | QWK by seed | mean | sd | lowest to highest |\n|---|---|---|---|---|")
    for name, values in spread.items():
        listed = ", ".join(f"{value:.3f}" for value in values)
        deviation = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        ends = f"{min(values):.3f} to {max(values):.3f}"
        print(f"| {name} | {listed} | {np.mean(values):.3f} | {deviation} | {ends} |")
    answer = {"name": "same_result", "value": len(differing), "unit": "files", "baseline": len(first)}
    print(json.dumps(answer | {"ratio": len(differing) / len(first), "target": 0, "holds": not differing}))


if __name__ == "__main__":
    main()

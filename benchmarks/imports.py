"""Seconds until a command can begin its work: `drgrade --help`, and all that each verb imports.

    uv run python benchmarks/imports.py

Every measurement is a new process, its files in the page cache (the first run of each is not counted). A verb
imports the modules that :mod:`drgrade.sources` finds for it, and MLflow where its trainings are tracked. The
baseline of a verb is the libraries alone, which are the limit: torch, torchvision, Lightning, timm and MLflow
for a training. The last line is one JSON object, for the verb `grade`.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from drgrade import sources

REPEATS = 3
PARTS = {
    "grade": ["drgrade.grading.finetune"],
    "pretrain": ["drgrade.pretrain.lesion_contrastive"],
    "explain": ["drgrade.explain.cam", "drgrade.grading.finetune"],
    "download": ["drgrade.data.demo"],
    "index": ["drgrade.data.demo"],
}
"""Modules that a verb finds by name, for the demo's params."""
TRACKED = {"detector", "pretrain", "grade", "evaluate"}
VERBS = (
    "download", "index", "overlaps", "crop", "lesion_boxes", "lesion_masks", "detector", "lesions",
    "lesion_metrics", "patches", "pretrain", "grade", "evaluate", "explain", "report",
)  # fmt: skip
LIBRARIES = "torch torchvision pytorch_lightning timm mlflow"
TARGET = 1.25
"""Our imports may cost this much of what the libraries alone cost."""


def modules(verb: str) -> list[str]:
    """Names of all modules that a verb may import."""
    paths = sources.stage_sources(verb, *PARTS.get(verb, []))
    names = [
        ".".join(["drgrade", *path.relative_to(sources.PACKAGE).with_suffix("").parts])
        for path in paths
        if path.name != "__init__.py"
    ]
    return [*names, *(["mlflow"] if verb in TRACKED else [])]


def seconds(*command: str) -> float:
    """Median wall time of a process that ends by itself."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def importing(names: list[str]) -> float:
    """Seconds of a process that imports these modules."""
    return seconds("-c", "import " + ", ".join(names))


def main() -> None:
    """Measure and print."""
    print(f"drgrade --help   {seconds('-m', 'drgrade', '--help'):5.2f} s")
    print(f"snakemake -n     {seconds('-m', 'snakemake', '--dry-run', '--quiet'):5.2f} s")
    measured = {verb: importing(modules(verb)) for verb in VERBS}
    for verb, value in measured.items():
        print(f"{verb:<15}  {value:5.2f} s, {len(modules(verb))} modules")
    baseline = importing(LIBRARIES.split())
    print(f"{LIBRARIES}: {baseline:.2f} s")
    ratio = measured["grade"] / baseline
    print(
        json.dumps(
            {
                "name": "imports",
                "value": round(measured["grade"], 2),
                "unit": "s until `drgrade grade` begins to work",
                "baseline": round(baseline, 2),
                "ratio": round(ratio, 3),
                "target": TARGET,
                "holds": ratio <= TARGET,
            }
        )
    )


if __name__ == "__main__":
    assert Path("Snakefile").is_file(), "run it in the project's folder"
    main()

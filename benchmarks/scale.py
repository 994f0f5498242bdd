"""Every stage's work on its whole table, and the jobs planned, for 1,000, 88,702 and 1,000,000 photographs.

    nice uv run python benchmarks/scale.py [--counts 1000 88702 1000000] [--only NAME ...]

No photographs: synthetic tables of that many rows (benchmarks/scale_tables.py), both eyes of each patient,
grades and parts as in EyePACS (40 % training, 12 % validation, 48 % test), 20 lesions a photograph. Work on
single photographs, such as decoding and networks, is measured elsewhere and grows with their number.

Each step runs the stage's own code in a process of its own, which prints its CPU time and its peak memory
(resident, imports and input included). The baseline is linear growth from the second to the third number of
rows. ``holds`` says that no step's CPU time grows more than 1.5 times as fast, none takes more than 8 GB, and
the jobs planned are the same. Takes about 20 minutes of one core, 8 GB of memory and 5 GB of disk. The last
line is one JSON object.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scale_steps import STEPS, prepare

COUNTS = (1000, 88_702, 1_000_000)
GROWTH, GIGABYTES = 1.5, 8.0
"""Most CPU time relative to linear growth, and most memory."""


def measure(step: str, folder: Path) -> dict[str, Any]:
    """Run a step in this process: CPU seconds of it and its children, wall seconds, peak GB, its result."""
    work = STEPS[step](folder)
    who = resource.RUSAGE_CHILDREN if step == "jobs" else resource.RUSAGE_SELF
    before, start = resource.getrusage(who), time.perf_counter()
    result = work()
    wall, after = time.perf_counter() - start, resource.getrusage(who)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = {"cpu": spent, "wall": wall, "gb": after.ru_maxrss * 1024 / 1e9}
    return told | ({"jobs": result} if step == "jobs" else {})


def in_child(*arguments: str) -> str:
    """The last line that this file prints, run in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout.strip().split("\n")[-1]


def verdict(found: dict[str, list[dict[str, Any]]], counts: list[int]) -> dict[str, Any]:
    """The result in one object.

    Args:
        found: for each step what :func:`measure` returned, for each number of rows.
        counts: numbers of rows, ascending; growth is that from the last but one to the last.
    """
    linear = counts[-1] / counts[-2]
    growth = {step: rows[-1]["cpu"] / rows[-2]["cpu"] / linear for step, rows in found.items()}
    worst = max(growth, key=lambda step: growth[step])
    most = max(found, key=lambda step: found[step][-1]["gb"])
    planned = [row["jobs"] for row in found.get("jobs", [])]
    held = growth[worst] <= GROWTH and found[most][-1]["gb"] <= GIGABYTES and len(set(planned)) <= 1
    return {
        "name": "scale",
        "value": round(growth[worst] * linear, 2),
        "unit": f"times the CPU time from {counts[-2]} to {counts[-1]} rows, step {worst}",
        "baseline": round(linear, 2),
        "ratio": round(growth[worst], 2),
        "target": GROWTH,
        "holds": held,
        "peak_gb": round(found[most][-1]["gb"], 2),
        "peak_step": most,
        "jobs": planned,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="shown; all are run")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the tables lie meanwhile")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["DRGRADE_TRACKING"] = "off"
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.folder)))
        return
    found: dict[str, list[dict[str, Any]]] = {step: [] for step in arguments.only}
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for step in STEPS:
                prepare(step, Path(folder), count)
                told = json.loads(in_child("--step", step, "--folder", folder))
                if step in found:
                    found[step].append(told)
                print(f"{count:9,d}  {step:10s}{told['cpu']:9.2f} s of CPU  {told['wall']:9.2f} s"
                      f"  {told['gb']:6.2f} GB  {told.get('jobs', '')}", flush=True)  # fmt: skip
    print(json.dumps(verdict(found, arguments.counts)))


if __name__ == "__main__":
    main()

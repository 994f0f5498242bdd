"""The clock was a day ahead when the results were made, and has been set right."""

import os
import time

DAY = 86_400 * 10**9


def test_results_of_tomorrow_are_not_made_again_and_stop_no_job(finished):
    made = [finished.folder / "results", finished.folder / ".cache"]
    paths = [path for folder in made for path in folder.rglob("*")]
    for path in paths:
        os.utime(path, ns=(path.stat().st_mtime_ns + DAY,) * 2)
    assert finished.planned() == set()
    finished.edit({"calibrate.alpha": 0.2})
    assert finished.planned() == {"calibrate", "evaluate", "report"}
    # Snakemake would delete an output that is older than an input
    finished.snakemake("--", "results/demo/calibrate/calibration.json")
    assert finished.file("calibrate/calibration.json").stat().st_mtime_ns <= time.time_ns()
    assert finished.planned() == {"evaluate", "report"}

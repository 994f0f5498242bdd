"""A pipeline that is killed again and again ends with the bytes of one that nothing disturbed.

The short form of ``benchmarks/faults.py``: kills in a part of the pipeline, by all kinds of stages.
"""

import random
import shutil

from benchmarks.faults import SNAKEMAKE, Killed, digests

TARGET = "results/demo/evaluate/leaderboard.csv"
REMADE = ("demo_site/crop", "demo/pretrain", "demo/grade", "demo/calibrate", "demo/evaluate")
"""What is made again from the rest of a finished run: shards, an encoder, models, tables and figures."""
STAGES = (
    ("demo_site/crop", "all"),
    ("demo/pretrain_lesion_contrastive", "main"),
    ("demo/grade_lesion_contrastive_seed0", "job"),
    ("demo/evaluate", "all"),
)
"""Log files of the stages that are killed, in the order of the run, and what is killed."""
FIRST = 2.0
"""Seconds from the appearance of a stage's log file within which it is killed."""


def test_a_killed_run_ends_with_the_same_bytes(snakemade, finished):
    """The undisturbed run had two cores, this one has three: other numbers of workers and of jobs at once."""
    for folder in REMADE:
        shutil.rmtree(finished.folder / "results" / folder)
    shutil.rmtree(finished.folder / "logs")
    killed = Killed(finished, (*SNAKEMAKE, "3", "--", TARGET))
    draw = random.Random(0)
    for place, (stage, kind) in enumerate(STAGES):
        logs = [f"logs/{name}.log" for name, _ in STAGES[place:]]
        hit, _ = killed.kill(logs, draw.random(), [FIRST] * len(logs), kind)
        assert hit, f"the run ended before it could be killed in {stage}"
    killed.finish()
    before, after = digests(snakemade), digests(finished)
    assert after == before
    assert finished.planned("--", TARGET) == set()


def test_what_a_failed_job_took_away_is_made_again_with_all_that_follows(finished):
    """Snakemake deletes outputs when a job starts; where it then fails, results of the old ones remain."""
    model = finished.file("detector/model.pth")
    content = model.read_bytes()
    model.unlink()
    assert finished.planned() >= {"detector", "lesions", "lesion_metrics", "patches", "pretrain", "grade"}
    model.write_bytes(content)
    assert finished.planned() == set()

"""The pipeline and its distributed training under a real SLURM, started by ``slurm.sh``."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml
from tests.pipeline import fork_server

from drgrade.schema import PREDICTIONS, read_table

SNAKEMAKE = (
    "snakemake", "--workflow-profile", "profiles/slurm", "--slurm-partition-config", "partitions.yaml",
    "--slurm-init-seconds-before-status-checks", "2", "--keep-going", "--",
)  # fmt: skip
PARTITIONS = {"partitions": {"cpu": {"max_gpu": 0}, "gpu": {"max_gpu": 2}}}
ASKED = ("Partition", "TresPerJob", "CPUs/Task", "MinMemoryNode", "TimeLimit")
LONG = "results/demo/grade/long/seed0/training.json"


def wait_for(condition: Callable[[], bool], seconds: float = 400) -> None:
    """Wait until ``condition`` is true; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def jobs(cluster: dict[str, str]) -> dict[str, dict[str, str]]:
    """Jobs of SLURM by rule and wildcards: what they asked for, as ``scontrol`` shows it."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"],
        env=os.environ | cluster, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    found = [dict(re.findall(r"([\w/]+)=(\S*)", line)) for line in shown.splitlines() if "Comment=" in line]
    return {job["Comment"]: job for job in found}


def process_of(experiment: str, folder: Path) -> psutil.Process:
    """The training of an experiment that runs in a folder."""
    return next(
        process for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(folder) and {"--experiment", experiment} <= set(process.info["cmdline"])
    )  # fmt: skip


def test_jobs_run_on_slurm_and_a_cancelled_training_resumes(finished, cluster):
    (finished.folder / "partitions.yaml").write_text(yaml.safe_dump(PARTITIONS))
    finished.edit(
        {
            "patches.min_score": 0.0005,  # a job without a network
            "experiments.long": {"start": "random", "epochs": 15},
        }
    )
    patches = finished.file("patches/detector/patches.pkl")
    targets = ("results/demo/patches/detector/patches.pkl", LONG)
    variables = cluster | {"DRGRADE_TRACKING": "off"}  # spares each job an import of MLflow
    before = patches.stat().st_mtime_ns
    checkpoints = finished.folder / ".cache/drgrade/training"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(finished.run, *SNAKEMAKE, *targets, ok=False, **variables)
        wait_for(lambda: run.done() or any(checkpoints.glob("*/last.ckpt")))
        assert process_of("long", finished.folder).environ()["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        submitted = jobs(cluster)
        training = submitted["rule_grade_wildcards_long_seed0"]
        subprocess.run(["scancel", training["JobId"]], env=os.environ | cluster, check=True)
        output = run.result()

    asked = {name: tuple(job.get(key) for key in ASKED) for name, job in submitted.items()}
    a_gpu = ("gpu", "gres:gpu:1", "8", "16000M", "1-00:00:00")
    assert asked == {
        "rule_patches_wildcards_detector": ("cpu", None, "1", "16000M", "04:00:00"),
        "rule_grade_wildcards_long_seed0": a_gpu,
    }
    assert patches.stat().st_mtime_ns > before
    assert "the end of logs/demo/grade_long_seed0.log" in output
    assert "CANCELLED" in output
    assert not (finished.folder / LONG).exists()

    finished.run(*SNAKEMAKE, LONG, **variables)
    assert "resumes from" in (finished.folder / "logs/demo/grade_long_seed0.log").read_text()
    assert (finished.folder / LONG).exists()


def test_two_processes_of_srun_train_as_one(finished, cluster):
    # a vision transformer, as BatchNorm sees half of a batch where there are no GPUs; SGD, as Adam makes
    # steps of the rounding of small gradients
    vit = {"start": "random", "encoder": "test_vit", "input_size": 64, "epochs": 2, "optimizer": "sgd"}
    finished.edit({"experiments.vit": vit})
    target = "results/demo/grade/vit/seed0/training.json"
    plan = finished.snakemake("--dry-run", "--printshellcmds", "--", target)
    command = shlex.split(re.search(r"drgrade grade .*(?= > logs)", plan)[0])
    table = finished.file("grade/vit/seed0/predictions.parquet")
    srun = ["srun", "--ntasks=2", "--ntasks-per-node=2"]
    tables = []
    for launcher in (srun, []):
        table.unlink(missing_ok=True)
        done = subprocess.run(
            [*launcher, *fork_server.ASK, *command], cwd=finished.folder, text=True, check=False,
            env=os.environ | cluster | {"PYTHONPATH": str(finished.folder / "src")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert ("GLOBAL_RANK: 1, MEMBER: 2/2" in done.stdout) == (launcher is srun)
        tables.append(read_table(table, PREDICTIONS))
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=1e-4)
    assert np.ptp(tables[0]["score"]) > 0

    finished.snakemake("--touch", "--force", "--", target)
    assert finished.planned("--", target) == set()

"""What jobs ask for: cores and GPUs, of one machine and of SLURM, whose ``sbatch`` is a stand-in here."""

import os
import re

import pytest

SLURM = {
    "sbatch": 'echo "$@" >> "$(dirname "$0")/calls"; echo "the cluster is full" >&2; exit 1',
    "sacctmgr": "echo your_account",
    "squeue": "exit 1",
    "sacct": "exit 1",
    "scancel": "exit 1",
}
"""What stands in for the cluster's commands: it writes down what is submitted and refuses it."""

CPUS = len(os.sched_getaffinity(0))


def asked(output: str, rule: str) -> list[dict[str, str]]:
    """Threads and resources of each planned job of a rule."""
    jobs = re.findall(rf"^rule {rule}:\n((?:    .*\n)+)", output, re.M)
    return [
        {"threads": "1"}
        | dict(re.findall(r"^    (threads): (\d+)$", job, re.M))
        | dict(re.findall(r"(\w+)=([^,\n]+)", "".join(re.findall(r"^    resources: .*$", job, re.M))))
        for job in jobs
    ]


@pytest.fixture
def outspoken(fresh):
    """A checkout whose jobs say all that they ask for: with a message, a job says that alone."""
    for path in (fresh.folder / "workflow/rules").glob("*.smk"):
        path.write_text(re.sub(r'    message:\n        "[^"]*"\n', "", path.read_text()))
    return fresh


@pytest.mark.parametrize(
    ("cards", "cores", "gpus", "job"),
    [
        ("0", "8", "1", {"threads": "8", "gpu": "1"}),
        ("0,1,2,3", "8", "4", {"threads": "2", "gpu": "1"}),
        ("0", "8", "16", {"threads": "1", "gpu": "1"}),
        # without a GPU, gpu=1 holds nothing back: a job computes with two threads, so many run side by side
        ("", CPUS, "1", {"threads": "2", "gpu": "0"}),
        # where more cores are claimed than there are, no more jobs run at once
        ("", 4 * CPUS, "1", {"threads": "8", "gpu": "0"}),
    ],
)
def test_jobs_on_one_machine_share_its_cores(outspoken, cards, cores, gpus, job):
    command = ("snakemake", "--cores", str(cores), "--resources", f"gpu={gpus}", "--dry-run")
    output = outspoken.run(*command, CUDA_VISIBLE_DEVICES=cards, DRGRADE_THREADS="2")
    for rule in ("detector", "lesions", "pretrain", "grade", "explain"):
        jobs = asked(output, rule)
        assert jobs
        assert all(job.items() <= one.items() for one in jobs), jobs
    assert {one["threads"] for one in asked(output, "crop")} == {str(cores)}


def test_the_lesion_search_is_divided_on_demand(outspoken):
    command = ("snakemake", "--cores", "8", "--resources", "gpu=4", "--dry-run")
    assert asked(outspoken.run(*command), "lesions_shard") == []
    output = outspoken.run(*command, "--printshellcmds", "--set-scatter", "search=4")
    assert len(asked(output, "lesions_shard")) == 4
    assert sorted(re.findall(r"--shard (\d/4)", output)) == ["0/4", "1/4", "2/4", "3/4"]


def test_slurm_is_asked_for_one_gpu_and_eight_cores_a_job_several_at_once(finished, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in SLURM.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    finished.edit({f"experiments.{name}.label_fraction": 0.9 for name in ("majority", "lesion_contrastive")})
    output = finished.run(
        "snakemake", "--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1",
        "--", "results/demo/evaluate/leaderboard.csv",
        ok=False, PATH=f"{tools}:{os.environ['PATH']}",
    )  # fmt: skip
    assert "the cluster is full" in output
    calls = [line for line in (tools / "calls").read_text().splitlines() if "--wrap" in line]
    assert len(calls) == 2, "both trainings are submitted, neither waits for the other"
    for call in calls:
        options = call.split("--wrap")[0]
        assert "--gpus=1" in options
        assert "--gres" not in options
        assert "--cpus-per-task=8" in options
        assert "-p gpu" in options
        assert "--mem 16000" in options

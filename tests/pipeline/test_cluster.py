"""What jobs ask for: cores and GPUs, of one machine, of SLURM, whose ``sbatch`` is a stand-in here, and of
Kubernetes, whose server is one. ``tests/cluster`` has a real SLURM."""

import json
import os
import re
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

SLURM = {
    "sbatch": 'echo "$@" >> "$(dirname "$0")/calls"; echo "the cluster is full" >&2; exit 1',
    "sinfo": "echo 'main*'",
    "squeue": "exit 1",
    "sacct": "exit 1",
    "scancel": "exit 1",
}
"""What stands in for the cluster's commands: it writes down what is submitted and refuses it."""

CPUS = len(os.sched_getaffinity(0))
ROOT = Path(__file__).parents[2]


class KubernetesServer(BaseHTTPRequestHandler):
    """Accepts every pod and says that it failed; ``server.jobs`` has what is asked for."""

    server: "Kubernetes"

    def answer(self, content: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            self.server.jobs.append(sent)
        self.answer(sent)

    def do_GET(self) -> None:
        self.answer({"status": {"failed": 1}} if "/jobs/" in self.path else {"items": []})

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({})

    def log_message(self, *arguments: object) -> None:
        pass


class Kubernetes(ThreadingHTTPServer):
    """The server, on a free port of this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), KubernetesServer)
        self.jobs: list[dict] = []

    def access(self) -> str:
        """What a user's ``~/.kube/config`` holds."""
        url = f"http://127.0.0.1:{self.server_port}"
        return yaml.safe_dump(
            {
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "current-context": "test",
                "users": [{"name": "test", "user": {}}],
            }
        )


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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


def test_survey_and_cropping_divided_among_jobs_end_as_in_one(finished, snakemade):
    divided = ("--set-scatter", "index=2", "crop=2", "--", "results/demo/crop/store.json")
    assert finished.planned(*divided) == {"index_shard", "index", "crop_shard", "crop"}
    finished.snakemake(*divided)
    for stage in ("index", "crop"):
        for part in (1, 2):
            log = finished.folder / f"logs/demo/{stage}_{part}-of-2.log"
            assert re.search(rf"drgrade {stage} .*--shard {part - 1}/2 ", log.read_text().splitlines()[0])
        files = {path.relative_to(snakemade.folder) for path in snakemade.file(stage).rglob("[!.]*")}
        assert {path.relative_to(finished.folder) for path in finished.file(stage).rglob("*")} >= files
        assert not list(finished.file(stage).glob(".*parts"))
        assert not list(finished.file(stage).glob("*-of-2.*"))
        for path in files:
            if (snakemade.folder / path).is_file():
                assert (finished.folder / path).read_bytes() == (snakemade.folder / path).read_bytes()
    assert finished.planned(*divided) == set()


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
        assert "-p main" in options
        assert "--mem 16000" in options


def test_kubernetes_is_asked_for_a_gpu_by_jobs_with_a_network_in_the_shared_folder(
    finished, kubernetes, tmp_path
):
    (tmp_path / "access").write_text(kubernetes.access())
    finished.edit({"experiments.majority.label_fraction": 0.9, "patches.min_score": 0.0005})
    output = finished.run(
        "uv", "run", "--no-sync", "--project", str(ROOT), "--with", "snakemake-executor-plugin-kubernetes",
        "snakemake", "--workflow-profile", "profiles/kubernetes", "--keep-going",
        "--seconds-between-status-checks", "1",
        "--", "results/demo/patches/detector/patches.pkl", "results/demo/grade/majority/seed0/training.json",
        ok=False, KUBECONFIG=str(tmp_path / "access"), PYTHONPATH="profiles/kubernetes:src",
        UV_PROJECT_ENVIRONMENT=sys.prefix,
    )  # fmt: skip
    assert "the end of logs/demo/patches_detector.log" in output
    pods = [job["spec"]["template"]["spec"] for job in kubernetes.jobs]
    commands = [pod["containers"][0]["args"][1] for pod in pods]
    here = f"cd {finished.folder} && export PYTHONPATH=src && python -m snakemake "
    assert all(command.startswith(here) and " --max-threads 8 " in command for command in commands)
    asked = {
        re.search(r"--target-jobs '(\w+):", command)[1]: pod["containers"][0]["resources"]["requests"]
        for command, pod in zip(commands, pods, strict=True)
    }
    assert asked["grade"].items() >= {"cpu": "7600m", "memory": "16000M", "nvidia.com/gpu": "1"}.items()
    assert asked["patches"].items() >= {"cpu": "950m", "memory": "16000M"}.items()
    assert "nvidia.com/gpu" not in asked["patches"]
    for pod in pods:
        assert {"name": "drgrade", "persistentVolumeClaim": {"claimName": "drgrade"}} in pod["volumes"]
        assert {"name": "drgrade", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]

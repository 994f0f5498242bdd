"""Many machines on one tracking server, which docs/shared.md says how to start.

Each job runs in a folder of its own, so no lock is shared, as on machines without a common disk.
"""

import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.documented import commands
from tests.pipeline.fork_server import PYTHON

from drgrade import tracking
from drgrade.publish import publish, publish_report

JOBS = 16
EPOCHS = 3
PARAMS = {"grade": {"lr": 0.5}}
JOB = """
import sys, time
from pathlib import Path
from drgrade import tracking

number, epochs = map(int, sys.argv[1:])
Path("ready").touch()
while not Path("../go").exists():
    time.sleep(0.01)
Path("weights.txt").write_text(f"weights {number}")
with tracking.track("grade", f"job{number}", {"seed": number, "nested": {"lr": 0.5}}) as run:
    for epoch in range(epochs):
        run.metrics({"loss": number + epoch / 4, "val_qwk": -epoch}, epoch)
    run.dataset("table", Path("weights.txt"))
    run.artifact(Path("weights.txt"), "model")
    with run.child("fold0", {"fold": 0}) as child:
        child.metrics({"val_qwk": number}, 0)
print("done")
"""
INTERRUPTED = """
import time
from pathlib import Path
from drgrade import tracking

with tracking.track("grade", "interrupted", {}) as run, run.child("early", {}) as early:
    run.metrics({"loss": 1.0}, 0)
    Path("ready").touch()
    while not Path("../go").exists():
        time.sleep(0.01)
    early.metrics({"loss": 0.5}, 1)
    run.metrics({"loss": 0.5}, 1)
    with run.child("late", {}) as late:
        late.metrics({"loss": 0.5}, 1)
    run.artifact(Path("ready"))
print("done")
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """An empty PostgreSQL whose clients on 127.0.0.1 need a password; variables with which its superuser
    connects."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        message = "no PostgreSQL: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    control = Path(initdb).resolve().with_name("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # its socket's path must be short
    user: dict[str, str] = {}
    if os.geteuid() == 0:  # as which PostgreSQL does not start
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(*command: str | Path) -> None:
        log = folder / "commands.log"
        with log.open("a") as output:
            status = subprocess.run(
                command, cwd=folder, stdout=output, stderr=output, check=False, **user
            ).returncode
        assert status == 0, log.read_text()

    port = free_port()
    rights = ("--auth-host=scram-sha-256", "--auth-local=trust")
    run(initdb, "-D", folder / "data", "-U", "postgres", "--no-sync", *rights)
    options = f"-p {port} -k {folder} -F -c listen_addresses=127.0.0.1"
    run(control, "-D", folder / "data", "-l", folder / "log", "-o", options, "-w", "start")
    yield {"PGHOST": str(folder), "PGPORT": str(port), "PGUSER": "postgres"}
    run(control, "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


class Server:
    """MLflow's server, started as the page says."""

    def __init__(self, folder: Path, postgres: dict[str, str]) -> None:
        self.artifacts = folder / "artifacts"
        self.database = postgres
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        once, start = commands(
            "shared.md", "## Tracking server",
            {
                "sudo apt-get install postgresql\n": "",
                "sudo -u postgres ": "",
                "5432": postgres["PGPORT"],
                "/srv/mlflow": str(self.artifacts),
                "uv run --extra server mlflow": f"exec {sys.executable} -m mlflow",
                "--port 5000": f"--port {self.port} --workers 1",
            },
        )  # fmt: skip
        home = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        subprocess.run(
            ["bash", "-ec", once], check=True, env=os.environ | postgres | home, stdout=subprocess.DEVNULL
        )
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", "-ec", start], cwd=folder, env=os.environ | home, start_new_session=True,
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)

    def kill(self) -> None:
        """End all its processes at once, and wait until none of them listens."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            except OSError:
                return
            time.sleep(0.01)

    def query(self, sql: str) -> str:
        """What PostgreSQL answers."""
        command = ["psql", "-d", "mlflow", "-Atc", sql]
        return subprocess.run(
            command, env=os.environ | self.database, capture_output=True, text=True, check=True
        ).stdout.strip()


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setenv(tracking.PARENT, json.dumps(PARAMS))
        server = Server(tmp_path_factory.mktemp("server"), postgres)
        try:
            server.wait()
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            yield server
        finally:
            server.kill()


def start(folder: Path, code: str, *arguments: object) -> subprocess.Popen:
    """A job in a folder of its own, which waits at its start until all may go on."""
    folder.mkdir()
    command = [*PYTHON, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def let_go(folder: Path, jobs: list[subprocess.Popen]) -> list[tuple[str, str]]:
    """Have waiting jobs go on, all in the same moment; what each of them prints and logs."""
    while len(list(folder.glob("*/ready"))) < len(jobs):
        assert all(job.poll() is None for job in jobs)
        time.sleep(0.01)
    (folder / "go").touch()
    return [job.communicate(timeout=240) for job in jobs]


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory) -> list[tuple[str, str]]:
    """What the jobs printed that used the empty server all at once."""
    folder = tmp_path_factory.mktemp("jobs")
    jobs = [start(folder / f"{number}", JOB, number, EPOCHS) for number in range(JOBS)]
    return let_go(folder, jobs)


def all_runs():
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id])


def children(runs, parent):
    return [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def test_jobs_at_once_lose_and_double_nothing(server, finished, tmp_path):
    assert finished == [("done\n", "")] * JOBS
    client, runs = all_runs()
    (parent,) = [run for run in runs if run.data.tags.get("stage") == "pipeline"]
    assert parent.data.params == {"grade.lr": "0.5"}
    jobs = children(runs, parent)
    assert sorted(run.info.run_name for run in jobs) == sorted(f"job{number}" for number in range(JOBS))
    for run in jobs:
        number = int(run.info.run_name.removeprefix("job"))
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.user"] == getpass.getuser()
        assert run.data.params == {"seed": str(number), "nested.lr": "0.5"}
        losses = client.get_metric_history(run.info.run_id, "loss")
        expected = [(epoch, number + epoch / 4) for epoch in range(EPOCHS)]
        assert [(one.step, one.value) for one in losses] == expected
        file = client.download_artifacts(run.info.run_id, "model/weights.txt", str(tmp_path))
        assert Path(file).read_text() == f"weights {number}"
        (fold,) = children(runs, run)
        assert fold.data.metrics == {"val_qwk": number}
    assert len(runs) == 1 + 2 * JOBS
    assert server.query("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'") == str(len(runs))
    assert len(list(server.artifacts.rglob("weights.txt"))) == JOBS
    shown = {experiment.name for experiment in client.search_experiments()}
    assert shown == {"Default", tracking.EXPERIMENT}


def test_a_deleted_parent_is_replaced_by_one(server, finished, tmp_path, monkeypatch):
    client, runs = all_runs()
    (old,) = [run for run in runs if run.data.tags.get("stage") == "pipeline"]
    client.delete_run(old.info.run_id)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with tracking.track("grade", name, {}):
            pass
    _, runs = all_runs()
    (new,) = [run for run in runs if run.data.tags.get("stage") == "pipeline"]
    assert new.info.run_id != old.info.run_id
    assert {run.info.run_name for run in children(runs, new)} == {"one", "other"}


def test_final_results_and_files_stand_on_the_parent(server, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking.PARENT, json.dumps({"grade": {"lr": 0.25}}))
    (tmp_path / "figures").mkdir()
    for file in ("figures/roc.svg", "report.html"):
        (tmp_path / file).write_text(file)
    publish({"imagenet": 0.75}, None, {}, figures=Path("figures"))
    publish_report(Path("report.html"))
    client, runs = all_runs()
    (parent,) = [run for run in runs if run.data.params == {"grade.lr": "0.25"}]
    assert parent.data.metrics == {"qwk_imagenet": 0.75}
    for file in ("figures/roc.svg", "report/report.html"):
        found = client.download_artifacts(parent.info.run_id, file, str(tmp_path))
        assert Path(found).read_text() == file.removeprefix("report/")


def test_a_job_goes_on_without_its_server_and_warns_once(server, tmp_path):
    """The last test here, as it ends the server."""
    job = start(tmp_path / "job", INTERRUPTED)
    while not (tmp_path / "job/ready").exists():
        assert job.poll() is None
        time.sleep(0.01)
    server.kill()
    ((printed, logged),) = let_go(tmp_path, [job])
    assert printed == "done\n", logged
    (warning,) = logged.splitlines()
    assert server.uri in warning
    assert "this job goes on untracked" in warning
    run = "SELECT run_uuid FROM runs WHERE name = 'interrupted'"
    assert server.query(f"SELECT step, value FROM metrics WHERE key = 'loss' AND run_uuid = ({run})") == "0|1"

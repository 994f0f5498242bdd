"""Two edits of params.yaml side by side in MLflow's own pages, in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

import pytest

from drgrade import tracking
from drgrade.params import Params
from drgrade.publish import publish

QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: apt-get install chromium")
        pytest.skip("no chromium: apt-get install chromium")
    return path


@pytest.fixture
def two_edits(tmp_path, monkeypatch):
    """A store with the parents of two learning rates and their final QWK."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy would look for the server on its own machine
    for lr, qwk in ((0.0015, 0.7125), (0.0035, 0.6437)):
        params = json.loads(Params().model_dump_json())
        params["grade"]["lr"] = lr
        monkeypatch.setenv(tracking.PARENT, json.dumps(params))
        publish({"imagenet": qwk}, None, {})
    return tmp_path


@pytest.fixture
def server(two_edits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db",
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    with (two_edits / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_two_edits_stand_side_by_side(server, chromium, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    parents = [run.info.run_id for run in client.search_runs([experiment], "tags.stage = 'pipeline'")]
    assert len(parents) == 2
    runs, experiments = quote(json.dumps(parents)), quote(json.dumps([experiment]))
    page = f"{server}/#/compare-runs?runs={runs}&experiments={experiments}"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [chromium, *QUIET, profile, "--virtual-time-budget=30000", "--dump-dom", page],
        capture_output=True, text=True, timeout=180, check=True,
    ).stdout  # fmt: skip
    for text in ("Comparing 2 Runs", "grade.lr", "0.0015", "0.0035", "qwk_imagenet", "0.7125", "0.6437"):
        assert text in shown

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from tests.pipeline.fork_server import PYTHON

from drgrade import tracking
from drgrade.publish import publish, publish_report
from drgrade.tracking_store import flatten

JOB = """
import sys
from pathlib import Path
from drgrade import tracking
with tracking.track("grade", sys.argv[1], {"lr": 1}) as run:
    run.metrics({"loss": 1.0}, 0)
    run.metrics({"loss": 0.5}, 1)
    run.dataset("table", Path("table.json"))
    with run.child("seed0", {"seed": 0}) as child:
        child.metrics({"val_qwk": 0.1}, 0)
print("done")
"""
KILLED_CREATING = """
import os, signal
from itertools import count
from sqlalchemy import event
from sqlalchemy.engine import Engine
tables = count(1)
@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if statement.lstrip().startswith("CREATE TABLE") and next(tables) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(tracking.PARENT, json.dumps({"grade": {"lr": 1.0}}))
    Path("table.json").write_text("{}")
    return tmp_path


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """MLflow's database without a run, which takes a second to create."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def stored(folder, empty_store):
    """The folder, where MLflow's database is already there."""
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def all_runs():
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id])


def test_jobs_at_once_on_a_fresh_store_lose_nothing(folder):
    count = 4
    jobs = [subprocess.Popen([*PYTHON, "-c", JOB, f"job{n}"], stdout=subprocess.PIPE) for n in range(count)]
    assert [job.communicate(timeout=240)[0] for job in jobs] == [b"done\n"] * count
    client, runs = all_runs()
    names = sorted(run.info.run_name for run in runs if run.info.run_name.startswith("job"))
    assert names == [f"job{n}" for n in range(count)]
    parents = [run for run in runs if "params_key" in run.data.tags]
    assert len(parents) == 1
    assert parents[0].data.params == {"grade.lr": "1.0"}
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == count
    for run in children:
        assert run.info.status == "FINISHED"
        assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5]
        assert run.inputs.dataset_inputs[0].dataset.digest == "44136fa355b3"  # sha256 of {}


def test_a_job_killed_while_it_creates_the_store_leaves_none(folder):
    killed = subprocess.run([*PYTHON, "-c", KILLED_CREATING + JOB, "first"], capture_output=True, timeout=240)
    assert killed.returncode != 0
    assert killed.stdout == b""
    job = subprocess.run([*PYTHON, "-c", JOB, "second"], capture_output=True, timeout=240, text=True)
    assert job.stdout == "done\n"
    assert "untracked" not in job.stderr
    assert "second" in {run.info.run_name for run in all_runs()[1]}


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////dev/null/mlflow.db"])
def test_a_dead_server_does_not_stop_a_run(folder, uri):
    job = subprocess.run(
        [*PYTHON, "-c", JOB, "job"], capture_output=True, text=True, timeout=120,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
    )  # fmt: skip
    assert job.stdout == "done\n", job.stderr
    assert "goes on untracked" in job.stderr


def test_a_failed_job_is_a_failed_run(stored):
    with pytest.raises(ZeroDivisionError), tracking.track("grade", "broken", {}):
        raise ZeroDivisionError
    _, runs = all_runs()
    assert {run.info.run_name: run.info.status for run in runs}["broken"] == "FAILED"


def test_final_results_stand_on_the_parent(stored):
    publish({"good": 0.8, "bad": 0.1}, "good", {})
    _, runs = all_runs()
    parent = next(run for run in runs if "params_key" in run.data.tags)
    assert parent.data.metrics == {"qwk_good": 0.8, "qwk_bad": 0.1}


def test_tracking_can_be_switched_off(folder, monkeypatch):
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    with tracking.track("grade", "quiet", {}) as run:
        run.metrics({"loss": 1.0})
    publish({"good": 0.8}, "good", {})
    publish_report(Path("table.json"))
    assert not Path("mlflow.db").exists()


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": "1",
        "a.c.d": "[2]",
        "e": "None",
    }


UPLOAD = """
import sys
from pathlib import Path
from drgrade import tracking
with tracking.track("grade", sys.argv[1], {}) as run:
    run.artifact(Path("figure.txt"))
"""


def test_a_moved_project_keeps_its_artifacts_beside_its_database(folder, tmp_path, monkeypatch):
    before, moved = tmp_path / "before", tmp_path / "moved"
    before.mkdir()
    (before / "figure.txt").write_text("first")
    subprocess.run([*PYTHON, "-c", UPLOAD, "first"], check=True, cwd=before)
    before.rename(moved)
    subprocess.run([*PYTHON, "-c", UPLOAD, "second"], check=True, cwd=moved)
    assert not before.exists()
    monkeypatch.chdir(moved)
    client, runs = all_runs()
    by_name = {run.info.run_name: run for run in runs}
    for name in ("first", "second"):
        assert by_name[name].info.artifact_uri.startswith(f"{moved.as_uri()}/mlruns/")
        assert [file.path for file in client.list_artifacts(by_name[name].info.run_id)] == ["figure.txt"]


def test_a_deleted_experiment_is_restored(stored, caplog):
    with tracking.track("grade", "before", {}):
        pass
    client, _ = all_runs()
    client.delete_experiment(client.get_experiment_by_name("drgrade").experiment_id)
    with tracking.track("grade", "after", {}):
        pass
    _, runs = all_runs()
    assert {"before", "after"} <= {run.info.run_name for run in runs}
    assert "had been deleted, and is restored" in caplog.text


def test_a_failed_upload_is_told_and_the_run_is_ended(stored, caplog):
    with tracking.track("grade", "job", {}) as run:
        run.artifact(Path("gone.txt"))
        run.metrics({"loss": 1.0})
    _, runs = all_runs()
    (found,) = [run for run in runs if run.info.run_name == "job"]
    assert found.info.status == "FINISHED"
    assert found.data.metrics["loss"] == 1
    assert "gone.txt" in found.data.tags["incomplete"]
    assert "the run lacks this file" in caplog.text


def test_a_run_whose_tracking_failed_is_ended(stored, monkeypatch):
    with tracking.track("grade", "job", {}) as run, monkeypatch.context() as patch:
        patch.setattr(type(run.client), "log_batch", lambda *_args, **_kwargs: 1 / 0)
        run.metrics({"loss": 1.0})
        assert run.client is None
    _, runs = all_runs()
    (found,) = [run for run in runs if run.info.run_name == "job"]
    assert found.info.status == "FINISHED"
    assert found.data.tags["incomplete"] == "division by zero"


KILLED = """
import os
from drgrade import tracking
with tracking.track("grade", "job", {"seed": 1}) as run:
    run.metrics({"loss": 2.0}, step=0)
    with run.child("fold0", {}) as child:
        child.metrics({"loss": 3.0}, step=0)
        os._exit(9)
"""


def test_a_resumed_training_goes_on_in_its_run(stored):
    assert subprocess.run([*PYTHON, "-c", KILLED], check=False).returncode == 9
    with tracking.track("grade", "job", {"seed": 1}) as run:
        run.metrics({"loss": 1.0}, step=1)
        with run.child("fold0", {}) as child:
            child.metrics({"loss": 1.0}, step=1)
    with tracking.track("grade", "job", {"seed": 2}):
        pass
    client, runs = all_runs()
    first = [run for run in runs if run.data.params.get("seed") == "1"]
    (found,) = first
    assert found.info.status == "FINISHED"
    assert [entry.value for entry in client.get_metric_history(found.info.run_id, "loss")] == [2, 1]
    (child,) = [run for run in runs if run.info.run_name == "fold0"]
    assert [entry.value for entry in client.get_metric_history(child.info.run_id, "loss")] == [3, 1]
    with tracking.track("grade", "job", {"seed": 1}):  # a finished one is a run of its own
        pass
    _, runs = all_runs()
    assert len([run for run in runs if run.data.params.get("seed") == "1"]) == 2


def test_a_place_for_artifacts_that_the_user_chose_stays(stored, tmp_path):
    from mlflow import MlflowClient

    chosen = (tmp_path / "chosen").as_uri()
    MlflowClient(tracking.tracking_uri()).create_experiment(tracking.EXPERIMENT, chosen)
    with tracking.track("grade", "job", {}):
        pass
    client, runs = all_runs()
    assert client.get_experiment_by_name(tracking.EXPERIMENT).artifact_location == chosen
    assert all(run.info.artifact_uri.startswith(chosen) for run in runs)


def test_copies_of_a_project_on_one_store_have_runs_of_their_own(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/shared.db")
    for place in ("one", "other", "one"):  # the third resumes what the first began
        (folder / place).mkdir(exist_ok=True)
        monkeypatch.chdir(folder / place)
        with suppress(ZeroDivisionError), tracking.track("grade", "job", {}) as run:
            run.metrics({"loss": 1.0})
            raise ZeroDivisionError  # an unfinished run is one that may be resumed
    client, runs = all_runs()
    jobs = [run for run in runs if run.info.run_name == "job"]
    histories = [client.get_metric_history(run.info.run_id, "loss") for run in jobs]
    assert sorted(len(history) for history in histories) == [1, 2]

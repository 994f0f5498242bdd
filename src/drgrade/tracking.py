"""MLflow: one parent run for each state of ``params.yaml``, one child run for each training job.

Tracking never stops a job: if the server is missing or fails, a warning is logged and the job
continues. The default store is ``mlflow.db`` beside ``params.yaml``; ``MLFLOW_TRACKING_URI`` moves
it, ``DRGRADE_TRACKING=off`` switches tracking off. See ``uv run mlflow ui``.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Self

from drgrade.files import sha256
from drgrade.rank import rank

log = logging.getLogger(__name__)

PARENT = "DRGRADE_PARENT"
"""Environment variable with the resolved params as JSON, set by the Snakefile for every job."""
EXPERIMENT = "drgrade"
LOCK = Path(".cache/drgrade/mlflow.lock")
PLACES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source"),
    ("model_versions", "storage_location"), ("logged_models", "artifact_location"),
)  # fmt: skip
"""Tables and columns of MLflow's database with absolute paths of artifacts."""
LONGEST_VALUE = 500  # characters MLflow keeps of a parameter


def params_key(params: Mapping[str, Any]) -> str:
    """Identifier of a parent run: a digest of the resolved params."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:12]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{'a': {'b': 1}}`` to ``{'a.b': '1'}``, as MLflow shows parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:LONGEST_VALUE]
    return flat


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """Tracking must not stop a job: the first failure is logged and kept, further calls are skipped.

    After a failed upload further calls are still made, as only the disk or the artifact store may be full.
    """

    @wraps(method)
    def call(self: "Run", *args: Any, **kwargs: Any) -> None:
        if self.client is None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # a tracking server can raise any exception
            self.failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            upload = method.__name__ == "artifact"
            rest = "the run lacks this file" if upload else "this job goes on untracked"
            log.warning("MLflow: %s; %s", self.failure, rest)
            if not upload:
                self.client = None

    return call


class Run:
    """One MLflow run. Every method is safe to call whether or not tracking works."""

    def __init__(self, client: Any = None, run_id: str = "", experiment_id: str = "") -> None:
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.failure = ""
        self._owner = client

    def end(self, status: str) -> None:
        """Close the run, also after failures; the tag ``incomplete`` states what is missing."""
        if self._owner is None:
            return
        try:
            if self.failure:
                self._owner.set_tag(self.run_id, "incomplete", self.failure[:LONGEST_VALUE])
            self._owner.set_terminated(self.run_id, status)
        except Exception as error:
            log.warning("MLflow: %s", str(error).splitlines()[0])

    @_guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones under dotted names."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in flatten(values).items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(self.run_id, params=entries[start : start + 100])

    @_guarded
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one epoch (``step``)."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.client.log_batch(
            self.run_id, [Metric(key, float(value), now, step) for key, value in values.items()]
        )

    @_guarded
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, value)

    @_guarded
    def dataset(self, name: str, path: Path, context: str = "training") -> None:
        """Record an input table or store with the digest of its content."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(name, sha256(path)[:12], "local", json.dumps({"uri": str(path)}))
        self.client.log_inputs(
            self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])]
        )

    @_guarded
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a whole folder."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    @contextmanager
    def child(self, name: str, params: Mapping[str, Any]) -> Iterator[Self]:
        """Context manager with a child run of this run, for one seed or fold."""
        run = type(self)()
        if self.client is not None:
            job = _job(self.run_id, name, params)
            run = _start(self.client, self.experiment_id, name, self.run_id, type(self), job)
            run.params(params)
        yield from _ended(run)


class NullRun(Run):
    """A run that does nothing, for tracking switched off or failed."""


@contextmanager
def track(stage: str, name: str, params: Mapping[str, Any]) -> Iterator[Run]:
    """A child run for one job, under the parent of the current params.

    Args:
        stage: the verb, kept as the tag ``stage``.
        name: shown in the list of runs.
        params: the job's block of params, logged flattened.
    """
    run = Run()
    if not is_off() and rank() == 0:
        try:
            client, experiment_id, parent = connect()
            run = _start(client, experiment_id, name, parent, Run, _job(parent, stage, name, params))
            run.params(params)
            run.tags({"stage": stage, "git": _revision()})
        except Exception as error:  # no server, full disk, no permission: the job must go on
            log.warning("MLflow: %s; this job goes on untracked", str(error).splitlines()[0])
    with _system_metrics(run):
        yield from _ended(run)


def is_off() -> bool:
    """Whether the user has switched tracking off, by the environment variable DRGRADE_TRACKING."""
    return os.environ.get("DRGRADE_TRACKING") == "off"


def models_digest(manifest: Path) -> str:
    """Digest of trained models, the tag by which their run is found."""
    return sha256(manifest)[:12]


def tracking_uri() -> str:
    """Where runs are stored: ``MLFLOW_TRACKING_URI``, else SQLite in the working directory (absolute)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def lock() -> Any:
    """Return the lock that processes of one project share while they change the store."""
    from filelock import FileLock

    LOCK.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(LOCK)


def connect() -> tuple[Any, str, str | None]:
    """Client, experiment and parent run; the store is created once, under a lock (a fresh SQLite
    database that eight jobs migrate at the same time loses seven of them).
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with lock():
        client = MlflowClient(tracking_uri())
        experiment_id = _experiment(client)
        return client, experiment_id, _parent(client, experiment_id)


def _experiment(client: Any) -> str:
    """Return the experiment's id; creates or restores it, and updates the paths of a moved project."""
    place = Path("mlruns").absolute().as_uri() if tracking_uri().startswith("sqlite:") else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return str(client.create_experiment(EXPERIMENT, place))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
        log.warning("MLflow: the experiment %s had been deleted, and is restored", EXPERIMENT)
    old = str(experiment.artifact_location)
    ours = old.startswith("file:") and old.endswith("/mlruns")  # not a place that the user chose
    if "MLFLOW_TRACKING_URI" not in os.environ and ours and old != place:
        _move_artifacts(Path("mlflow.db"), old, str(place))
    return str(experiment.experiment_id)


def _move_artifacts(database: Path, old: str, new: str) -> None:
    """Change the paths of all artifacts from one folder to another, after the project's folder was moved.

    MLflow stores absolute paths and has no function that changes them; without this it would recreate the
    old folder and write there.
    """
    log.info("MLflow: the project was moved; artifacts of %s are now looked for in %s", old, new)
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table, column in PLACES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _parent(client: Any, experiment_id: str) -> str | None:
    text = os.environ.get(PARENT)
    if not text:
        return None
    params = json.loads(text)
    key = params_key(params)
    found = client.search_runs([experiment_id], f"tags.params_key = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    run = _start(client, experiment_id, f"pipeline {key}", None, Run)
    run.params(params)
    run.tags({"params_key": key, "git": _revision(), "stage": "pipeline"})
    client.set_terminated(run.run_id)
    return run.run_id


def _start(
    client: Any, experiment_id: str, name: str, parent: str | None, kind: type[Any], job: str = ""
) -> Any:
    """Return a new run, or the unfinished one of the same ``job`` if it was interrupted and is resumed."""
    if job:
        unfinished = f"tags.job = '{job}' and attributes.status != 'FINISHED'"
        for run in client.search_runs([experiment_id], unfinished, max_results=1):
            client.update_run(run.info.run_id, status="RUNNING")
            return kind(client, run.info.run_id, experiment_id)
    tags = {"mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
    tags |= {"job": job} if job else {}
    return kind(client, client.create_run(experiment_id, tags=tags).info.run_id, experiment_id)


def _job(*parts: Any) -> str:
    """Identifier of a job, the same when it is resumed: a digest of parent run, names and params."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _ended(run: Any) -> Iterator[Any]:
    """Yield the run, then close it with the status of the block: FINISHED, or FAILED if it raises."""
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        run.end(status)


@contextmanager
def _system_metrics(run: Run) -> Iterator[None]:
    """CPU, memory and GPU use beside the run's own metrics."""
    if run.client is None:
        yield
        return
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(tracking_uri())
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run.run_id)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _revision() -> str:
    result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"

"""MLflow: one parent run for each state of ``params.yaml``, one child run for each training job.

Tracking never stops a job: if the server is missing or fails, a warning is logged and the job
continues. The default store is ``mlflow.db`` beside ``params.yaml``; ``MLFLOW_TRACKING_URI`` moves
it, ``DRGRADE_TRACKING=off`` switches tracking off. See ``uv run mlflow ui``.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Self

from drgrade.files import sha256
from drgrade.rank import rank
from drgrade.tracking_store import (
    EXPERIMENT,
    LONGEST_VALUE,
    PARENT,
    connect,
    create_run,
    lock,
    log_params,
    project_id,
    reason,
    revision,
    tracking_uri,
)

__all__ = [
    "EXPERIMENT", "PARENT", "NullRun", "Run", "connect", "is_off", "lock", "models_digest", "reason", "track",
    "tracking_uri",
]  # fmt: skip

log = logging.getLogger(__name__)


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Tracking must not stop a job: the first failure is logged and kept, further calls are skipped.

    After a failed upload further calls are still made, as only the disk or the artifact store may be full.
    """

    @wraps(method)
    def call(self: "Run", *args: Any, **kwargs: Any) -> Any:
        if self.client is None:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a tracking server can raise any exception
            self.failure = reason(error)
            if method.__name__ == "artifact":
                log.warning("MLflow: %s; the run lacks this file", self.failure)
            else:
                self.client = None
                self._warn("this job goes on untracked")
            return None

    return call


class Run:
    """One MLflow run. Every method is safe to call whether or not tracking works."""

    def __init__(self, client: Any = None, run_id: str = "", experiment_id: str = "") -> None:
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.failure = ""
        self._owner = client
        self._top = self
        self._warned = False

    def end(self, status: str) -> None:
        """Close the run, also after failures; the tag ``incomplete`` states what is missing."""
        if self._owner is None:
            return
        try:
            if self.failure:
                self._owner.set_tag(self.run_id, "incomplete", self.failure[:LONGEST_VALUE])
            self._owner.set_terminated(self.run_id, status)
        except Exception as error:
            self.failure = reason(error)
            self._warn("the run is not closed")

    def _warn(self, consequence: str) -> None:
        """Log a failure: one warning for a job, however many child runs it has."""
        level = logging.DEBUG if self._top._warned else logging.WARNING
        self._top._warned = True
        log.log(level, "MLflow: %s; %s", self.failure, consequence)

    @_guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones under dotted names."""
        log_params(self.client, self.run_id, values)

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
        run = self._start_child(name, params) or type(self)()
        run.params(params)
        yield from _ended(run)

    @_guarded
    def _start_child(self, name: str, params: Mapping[str, Any]) -> Self:
        job = _job(self.run_id, name, params)
        run = _start(self.client, self.experiment_id, name, self.run_id, type(self), job)
        run._top = self._top
        return run


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
            job = _job(parent, project_id(), stage, name, params)
            run = _start(client, experiment_id, name, parent, Run, job)
            run.params(params)
            run.tags({"stage": stage, "git": revision()})
        except Exception as error:  # no server, full disk, no permission: the job must go on
            log.warning("MLflow: %s; this job goes on untracked", reason(error))
    with _system_metrics(run):
        yield from _ended(run)


def is_off() -> bool:
    """Whether the user has switched tracking off, by the environment variable DRGRADE_TRACKING."""
    return os.environ.get("DRGRADE_TRACKING") == "off"


def models_digest(manifest: Path) -> str:
    """Digest of trained models, the tag by which their run is found."""
    return sha256(manifest)[:12]


def _start(client: Any, experiment_id: str, name: str, parent: str | None, kind: type[Any], job: str) -> Any:
    """Return a new run, or the unfinished one of the same ``job`` if it was interrupted and is resumed."""
    unfinished = f"tags.job = '{job}' and attributes.status != 'FINISHED'"
    for run in client.search_runs([experiment_id], unfinished, max_results=1):
        client.update_run(run.info.run_id, status="RUNNING")
        return kind(client, run.info.run_id, experiment_id)
    tags = {"job": job} | ({"mlflow.parentRunId": parent} if parent else {})
    return kind(client, create_run(client, experiment_id, name, tags), experiment_id)


def _job(*parts: Any) -> str:
    """Identifier of a job, the same when it is resumed: a digest of parent run, project, names and params."""
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
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(run.run_id)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()

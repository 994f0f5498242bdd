"""Where MLflow's runs are stored: the database or server, its experiment, and the parent run of a pipeline.

See :mod:`drgrade.tracking` for what is recorded. Every function here raises what MLflow raises.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drgrade.files import write_file

log = logging.getLogger(__name__)

PARENT = "DRGRADE_PARENT"
"""Environment variable with the resolved params as JSON, set by the Snakefile for every job."""
EXPERIMENT = "drgrade"
LOCK = Path(".cache/drgrade/mlflow.lock")
PROJECT = Path(".cache/drgrade/project_id")
"""A random identifier of this copy of the project."""
PLACES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source"),
    ("model_versions", "storage_location"), ("logged_models", "artifact_location"),
)  # fmt: skip
"""Tables and columns of MLflow's database with absolute paths of artifacts."""
LONGEST_VALUE = 500  # characters MLflow keeps of a parameter


def tracking_uri() -> str:
    """Where runs are stored: ``MLFLOW_TRACKING_URI``, else SQLite in the working directory (absolute)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def lock() -> Any:
    """Return the lock that processes of one project share while they change the store."""
    from filelock import FileLock

    LOCK.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(LOCK)


def connect() -> tuple[Any, str, str | None]:
    """Client, experiment and parent run; a database is created once, under a lock (a fresh SQLite
    database that eight jobs migrate at the same time loses seven of them).

    A server needs no lock, and all jobs would wait in line for one that does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; errors are raised too
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning for each retry
    from mlflow import MlflowClient

    with contextlib.nullcontext() if tracking_uri().startswith("http") else lock():
        if "MLFLOW_TRACKING_URI" not in os.environ:
            _create(Path("mlflow.db"))
        client = MlflowClient(tracking_uri())
        experiment_id = _experiment(client)
        return client, experiment_id, _parent(client, experiment_id)


def project_id() -> str:
    """Return what tells this copy of the project from others that share a tracking server, made once."""
    with lock():
        if not PROJECT.exists():
            write_file(PROJECT, uuid.uuid4().hex.encode())
    return PROJECT.read_text()


def revision() -> str:
    """Return the Git revision of the working directory."""
    result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


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


def create_run(client: Any, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a run, which names its user as MLflow's own functions do, and return its id."""
    from mlflow.tracking.context.default_context import DefaultRunContext

    tags = DefaultRunContext().tags() | {"mlflow.runName": name} | dict(tags)
    return str(client.create_run(experiment_id, tags=tags).info.run_id)


def log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    """Log parameters of a run, nested ones under dotted names."""
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in flatten(values).items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])


def reason(error: Exception) -> str:
    """One line about an error of MLflow; that of a database follows SQLAlchemy's advice to programmers."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result")]
    return lines[0] if lines else type(error).__name__


def _create(database: Path) -> None:
    """Create the default store if there is none: elsewhere, then renamed.

    A process killed while MLflow creates a database leaves one that MLflow never mends and cannot use.
    """
    from mlflow import MlflowClient

    if database.exists():
        return
    with tempfile.TemporaryDirectory(dir=LOCK.parent) as folder:
        new = Path(folder, database.name).absolute()
        MlflowClient(f"sqlite:///{new}").get_experiment_by_name(EXPERIMENT)
        os.replace(new, database)


def _experiment(client: Any) -> str:
    """Return the experiment's id; creates or restores it, and updates the paths of a moved project."""
    place = Path("mlruns").absolute().as_uri() if tracking_uri().startswith("sqlite:") else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        _try_create(client, EXPERIMENT, place)
        experiment = client.get_experiment_by_name(EXPERIMENT)
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
    tags = {"git": revision(), "stage": "pipeline"}
    candidate = create_run(client, experiment_id, f"pipeline {key}", tags)
    log_params(client, candidate, params)
    client.set_terminated(candidate)
    shared = "MLFLOW_TRACKING_URI" in os.environ  # with projects that have a lock of their own
    parent = _elect(client, experiment_id, key, candidate) if shared else candidate
    if parent != candidate:
        client.delete_run(candidate)
    client.set_tag(parent, "params_key", key)
    return parent


def _elect(client: Any, experiment_id: str, key: str, candidate: str) -> str:
    """Return the run that jobs on all machines use as the parent of one state of the params.

    No lock spans machines, and MLflow offers none, but it refuses a second experiment of the same name. So
    the first candidate is the one whose job could create an experiment named after the key. The experiment
    contains nothing but this choice, as a tag; it is deleted at once, which keeps the name and hides it.

    Args:
        client: of the tracking server.
        experiment_id: the experiment of the runs.
        key: of the params.
        candidate: a run of this job, complete but for the tag ``params_key``.
    """
    number = 0
    while True:
        name = f"{EXPERIMENT} pipeline {key} {number}"
        if created := _try_create(client, name, tags={"parent": candidate}):
            client.delete_experiment(created)
            return candidate
        parent = str(client.get_experiment_by_name(name).tags["parent"])
        if client.search_runs([experiment_id], f"attributes.run_id = '{parent}'"):
            return parent
        number += 1  # the user has deleted that parent


def _try_create(
    client: Any, name: str, place: str | None = None, tags: Mapping[str, str] | None = None
) -> str | None:
    """Create an experiment and return its id; None if there is one of that name, deleted or not."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, place, tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return None

"""What stands in MLflow when a run has ended: final results, figures, the report, and the registered model.

As in :mod:`drgrade.tracking`, a server that is missing or fails stops nothing.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drgrade.tracking import Run, connect, is_off, lock, models_digest, reason

log = logging.getLogger(__name__)

REGISTERED = "drgrade"
"""Name of the registered model."""
CHAMPION = "champion"
"""Alias of the version that is best by validation."""


def publish(
    results: Mapping[str, float],
    best: str | None,
    trainings: Mapping[str, Sequence[Path]],
    calibration: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Write each experiment's final QWK and the figures on the parent run; register the best model.

    Args:
        results: test QWK by experiment.
        best: the experiment with the highest *validation* QWK, or None when nothing was held out.
        trainings: the ``training.json`` of each training, by experiment.
        calibration: ``calibration.json``; None: no model is registered.
        figures: folder of images.
    """
    if is_off():
        return
    try:
        client, experiment_id, parent = connect()
        if parent:
            run = Run(client, parent, experiment_id)
            run.metrics({f"qwk_{name}": value for name, value in results.items()})
            if figures is not None:
                run.artifact(figures, "figures")
        if best is not None and best in trainings and calibration is not None:
            _register(client, experiment_id, trainings[best], calibration)
    except Exception as error:
        log.warning("MLflow: %s; the results are not published there", reason(error))


def publish_report(page: Path) -> None:
    """Store the report on the parent run."""
    if is_off():
        return
    try:
        client, experiment_id, parent = connect()
        if parent:
            Run(client, parent, experiment_id).artifact(page, "report")
    except Exception as error:
        log.warning("MLflow: %s; the report is not published there", reason(error))


def _register(client: Any, experiment_id: str, trainings: Sequence[Path], calibration: Path) -> None:
    """Register the mean of an experiment's trainings as ``drgrade`` with the alias ``champion``.

    It is a model for ``mlflow models serve``, kept with the run of the first training. What is registered
    already gets the alias only.
    """
    tag = models_digest(trainings[0])
    runs = client.search_runs([experiment_id], f"tags.models = '{tag}'", max_results=1)
    if not runs:
        return
    from drgrade.evaluate.calibrate import read_calibration
    from drgrade.export.mlflow_model import write_mlflow
    from drgrade.export.portable import digest, write_portable

    run, folder, found = runs[0].info, trainings[0].parents[1], read_calibration(calibration)
    with tempfile.TemporaryDirectory() as temporary:
        portable, model = Path(temporary) / "drgrade", Path(temporary) / "model"
        labels, fit = [path.parent.name for path in trainings], found.of(folder.name)[None, None]
        write_portable(folder, labels, fit, found.params, portable)
        place = f"registered_{digest(portable)[:12]}"
        version = _version_of(client, f"{run.artifact_uri}/{place}")
        if version is None:
            write_mlflow(portable, model)
            client.log_artifacts(run.run_id, str(model), place)
    with lock():
        if version is None:
            version = _new_version(client, run, place, folder.name)
        client.set_registered_model_alias(REGISTERED, CHAMPION, version)


def _version_of(client: Any, source: str) -> str | None:
    """Return the registered version with these artifacts; None if there is none."""
    found = client.search_model_versions(f"name = '{REGISTERED}'")
    return next((str(one.version) for one in found if one.source == source), None)


def _new_version(client: Any, run: Any, place: str, experiment: str) -> str:
    """Register a run's artifacts."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(REGISTERED, description="Research use only, not a diagnosis.")
    except MlflowException:
        log.debug("the registered model is there already")
    source, tags = f"{run.artifact_uri}/{place}", {"experiment": experiment}
    return str(client.create_model_version(REGISTERED, source, run.run_id, tags).version)

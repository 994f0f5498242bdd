"""Where a trained model lies, and what was fitted for it: results, an export, or MLflow's registry."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from drgrade.errors import UserError
from drgrade.evaluate.calibrate import FILE, read_calibration
from drgrade.evaluate.fits import METHODS, NONE, Fit, Whose, by_whose
from drgrade.grading.models import MODEL
from drgrade.params import Calibrate
from drgrade.tracking import tracking_uri

log = logging.getLogger(__name__)

REGISTERED = "models:/"
"""Prefix of a model in MLflow's registry, such as ``models:/drgrade@champion`` or ``models:/drgrade/3``."""
_VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")
"""Name, and alias or version, of a registered model."""
EXPORT = "drgrade.json"
"""File that describes an exported model, see :class:`Exported`."""
_TRAINING = re.compile(r"seed(\d+)(?:_fold(\d+))?")
"""Folder of a training that uses all training patients."""


@dataclass(frozen=True)
class Exported:
    """Content of ``drgrade.json``, beside a folder ``members`` with the models.

    Attributes:
        experiment: name of the experiment.
        members: folders such as ``members/seed0``; each holds ``model/`` as the stage grade wrote it.
        calibration: what was fitted on validation photographs for their mean; None if nothing was.
        params: operating point, and how many grades a set may hold.
    """

    experiment: str
    members: list[str]
    calibration: Fit | None
    params: Calibrate


EXPORTED = TypeAdapter(Exported)
"""Reads and writes :class:`Exported` as JSON."""


class Found(NamedTuple):
    """A model that was found.

    Attributes:
        experiment: name of the experiment.
        folders: folders of its trained models, by training.
        fit: what was fitted on validation photographs for their mean.
        params: operating point, and how many grades a set may hold.
    """

    experiment: str
    folders: dict[str, Path]
    fit: Fit
    params: Calibrate


def find(where: str | Path) -> Found:
    """Find a model; arguments and errors are those of :meth:`drgrade.predict.model.Model.load`."""
    folder = _downloaded(str(where)) if str(where).startswith(REGISTERED) else Path(where)
    if (folder / EXPORT).is_file():
        about = _read_exported(folder / EXPORT)
        folders = {Path(member).name: folder / member / "model" for member in about.members}
        fit = about.calibration or unfitted("the model was exported without calibration")
        return Found(about.experiment, folders, fit, about.params)
    folders = _trainings(folder)
    root = next(iter(folders.values())).resolve().parent.parent
    return Found(root.name, folders, *_fit(root, list(folders)))


def unfitted(reason: str) -> Fit:
    """Return a fit on no photographs, which leaves probabilities as they are.

    Args:
        reason: why there are none.
    """
    return Fit(None, None, 0, 0, None, {}, NONE, {}, None, dict.fromkeys((*METHODS, "points"), reason))


def _trainings(folder: Path) -> dict[str, Path]:
    """Return the folders of trained models by training: all of an experiment, or the one that is named.

    Raises:
        UserError: there is none.
    """
    if folder.name == MODEL:
        folder = folder.parent
    if (folder / MODEL).is_file():
        return {folder.resolve().parent.name: folder}
    if (folder / "model" / MODEL).is_file():
        return {folder.resolve().name: folder / "model"}
    labels = [path.parents[1].name for path in folder.glob(f"*/model/{MODEL}")]
    found = [label for label in labels if _whose(label) is not None]
    if not found:
        raise UserError(
            f"{folder}: no trained model there; name the folder of an experiment, such as "
            "results/demo/grade/imagenet, of one training or of an exported model, or models:/NAME@ALIAS"
        )
    return {label: folder / label / "model" for label in sorted(found)}


def _whose(label: str) -> tuple[int, int | None] | None:
    """Return seed and fold of a training by the name of its folder; None for other folders."""
    named = _TRAINING.fullmatch(label)
    return None if named is None else (int(named[1]), None if named[2] is None else int(named[2]))


def _fit(experiment: Path, labels: Sequence[str]) -> tuple[Fit, Calibrate]:
    """Return what the stage calibrate fitted for trainings of an experiment: for one, or for all together.

    Raises:
        UserError: its file is damaged.
    """
    trained = [training for label in labels if (training := _whose(label)) is not None]
    if len(trained) < len(labels):
        return unfitted("a model outside the results has no calibration unless it was exported"), Calibrate()
    path = experiment.parent.parent / "calibrate" / FILE
    if not path.is_file():
        return unfitted(f"{path}: no such file; run the stage calibrate"), Calibrate()
    calibration = read_calibration(path)
    fits = by_whose(calibration.experiments.get(experiment.name, ()))
    alone = len(trained) == 1
    whose: Whose = trained[0] if alone else (None, None)
    complete = alone or set(trained) == {one for one in fits if one[0] is not None}
    if whose not in fits or not complete:
        reason = f"{path}: not fitted for these trainings of {experiment.name}; run the stage calibrate again"
        return unfitted(reason), calibration.params
    return fits[whose], calibration.params


def _read_exported(path: Path) -> Exported:
    """Read ``drgrade.json``.

    Raises:
        UserError: it is damaged.
    """
    try:
        return EXPORTED.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        raise UserError(f"{path}: {key}: {first['msg']}; export the model again") from None


def _downloaded(uri: str) -> Path:
    """Return the folder of a model in MLflow's registry: an exported one, or that of a training.

    Raises:
        UserError: the address is not complete, or the model is not there or cannot be downloaded.
    """
    named = _VERSION.fullmatch(uri)
    if named is None:
        raise UserError(f"{uri}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    name, alias, version = named.groups()
    store = tracking_uri()
    # download_artifacts would look a models:/ address up in the registry that this process used last
    client = MlflowClient(store, os.environ.get("MLFLOW_REGISTRY_URI") or store)
    try:
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias).version
        place = client.get_model_version_download_uri(name, version)
        folder = Path(download_artifacts(artifact_uri=place, tracking_uri=store))
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{uri}: {reason}; `uv run mlflow ui` shows the registered models") from None
    return next((path.parent for path in sorted(folder.rglob(EXPORT))), folder)


def warn(where: str | Path, fit: Fit, params: Calibrate) -> None:
    """Log what predictions lack, and why."""
    lacking = {
        "probabilities are not calibrated": fit.reasons.get(params.method),
        "no photograph is called referable": fit.reasons.get("points"),
    }
    reasons = dict.fromkeys(reason for reason in lacking.values() if reason)
    if reasons:
        what = " and ".join(text for text, reason in lacking.items() if reason)
        log.warning("%s: %s: %s", where, what, "; ".join(reasons))

"""A portable copy of trained models: what ``Model.load`` reads, and where it is from.

It holds ``drgrade.json``, ``provenance.json``, the licence of drgrade, and in ``members`` the files of each
training. Nothing of torch is imported, as the stage evaluate registers such a copy.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from drgrade import __version__
from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.evaluate.fits import Fit
from drgrade.files import sha256, write_json
from drgrade.grading.feature_sets import FACTS, read_facts
from drgrade.grading.models import MODEL, read_about, tensors_file
from drgrade.params import Calibrate, Features
from drgrade.predict.source import EXPORT, EXPORTED, Exported
from drgrade.predict.table import USE

PROVENANCE, LICENCE, MEMBERS = "provenance.json", "LICENSE", "members"
WRITTEN = {EXPORT, PROVENANCE, LICENCE, MEMBERS, "onnx", "timm", "mlflow"}
"""All that an export may hold."""


def experiment_of(where: Path, label: str) -> Path:
    """Return the folder of the experiment with a training, for any path that ``Model.load`` takes.

    Args:
        where: folder of an experiment, of one training, of its model, or ``model.json``.
        label: name of a training's folder, such as ``seed0``.

    Raises:
        UserError: it is not the place of a training.
    """
    place = where.resolve()
    for folder in (place, *place.parents):
        if (folder / label / "model" / MODEL).is_file():
            return folder
    raise UserError(
        f"--model {where}: an export starts from trainings; name the folder of an experiment, such as "
        "results/demo/grade/imagenet, or of one training"
    )


def write_portable(
    experiment: Path, labels: Sequence[str], fit: Fit, params: Calibrate, folder: Path
) -> None:
    """Write a portable copy of trainings, whose mean is the model.

    Args:
        experiment: folder of an experiment, such as ``results/demo/grade/imagenet``.
        labels: names of its trainings' folders, such as ``seed0``.
        fit: what was fitted on validation photographs for their mean.
        params: operating point, and how many grades a set may hold.
        folder: to write to.

    Raises:
        UserError: a model that they build on is missing, or a file is damaged.
    """
    models = {label: experiment.resolve() / label / "model" for label in labels}
    others = sorted({file for model in models.values() for file in _built_on(model)})
    # models that others are needed for find them by their place in the results
    root = experiment.resolve().parents[1] if others else experiment.resolve()
    for file in [*(file for model in models.values() for file in _files(model)), *others]:
        target = folder / MEMBERS / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    members = [str(Path(MEMBERS) / model.parent.relative_to(root)) for model in models.values()]
    about = Exported(experiment.name, members, fit if fit.n else None, params)
    write_json(EXPORTED.dump_python(about, mode="json"), folder / EXPORT)
    write_json(_provenance(experiment.resolve(), labels), folder / PROVENANCE)
    (folder / LICENCE).write_text(_own_licence())


def digest(folder: Path) -> str:
    """SHA-256 of a folder's files and their names, in hexadecimal."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [[str(path.relative_to(folder)), sha256(path)] for path in files]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _files(model: Path, checkpoint: str | None = None) -> list[Path]:
    """Return the files of a model; those without tensors have one."""
    return [path for path in (model / MODEL, model / tensors_file(checkpoint)) if path.is_file()]


def _built_on(model: Path) -> Iterator[Path]:
    """Yield the files of the models that a model needs, see :func:`drgrade.grading.assembly.assemble`."""
    params = read_about(model)["params"]
    training, grade = model.parent.name, model.parents[2]
    for name in params.get("members", ()):
        member = grade / name / training / "model"
        yield from _files(member)
        yield from _built_on(member)
    for name in params.get("features", ()):
        folder = grade.parent / "features" / name / training
        facts = read_facts(folder, name)
        block, count = Features.model_validate(facts["params"]), int(facts["models"])
        parts = [training] if count == 1 else [f"{training}_part{part}of{count}" for part in range(count)]
        checkpoint = None if block.checkpoint == "selected" else block.checkpoint
        yield folder / FACTS
        for part in parts:
            yield from _files(grade / block.experiment / part / "model", checkpoint)


def _provenance(experiment: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Return dataset, licences, and each training's record: start weights, seed, digests of its files."""
    dataset = experiment.parents[1].name
    records = {label: experiment / label / "training.json" for label in labels}
    trainings = {label: json.loads(path.read_text()) for label, path in records.items() if path.is_file()}
    return {
        "drgrade": __version__,
        "dataset": dataset,
        "licences": {"drgrade": "Apache-2.0", "photographs": _licence(dataset)},
        "trainings": trainings,
        "use": USE,
    }


def _own_licence() -> str:
    """The licence of drgrade: of the installed package, or of the clone if that runs in a container."""
    try:
        return metadata.distribution("drgrade").read_text("licenses/LICENSE") or ""
    except metadata.PackageNotFoundError:
        return (Path(__file__).parents[3] / "LICENSE").read_text()


def _licence(dataset: str) -> str:
    """Return the licence of a dataset's photographs."""
    try:
        return str(DATASETS.get(dataset)().card.licence)
    except UserError:
        return "unknown"

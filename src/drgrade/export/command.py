"""The verb ``export``: a portable copy of a model and, where its grader allows, files for other tools."""

import os
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from drgrade.errors import UserError
from drgrade.export.errors import UnsuitableError
from drgrade.export.portable import EXPORT, WRITTEN, experiment_of, write_portable
from drgrade.files import check_writable
from drgrade.predict.model import Model
from drgrade.predict.source import REGISTERED

KINDS = ("onnx", "timm", "mlflow")


def export(where: str | Path, out: Path, kinds: Collection[str] = ()) -> None:
    """Export a trained model to a folder, which appears when all is done; print a line on each part of it.

    Args:
        where: folder of an experiment, for all its trainings, of one training or of its model.
        out: folder to write; replaced if it is an older export.
        kinds: of KINDS. If none are given: all that the model allows; a line says why one is left out.

    Raises:
        UserError: there is no such model, ``out`` holds something else, or one of ``kinds`` is not possible.
    """
    _check(out)
    if str(where).startswith(REGISTERED) or (Path(where) / EXPORT).is_file():
        raise UserError(f"--model {where}: is an export already; name the folder of an experiment in results")
    model = Model.load(where)
    experiment = experiment_of(Path(where), next(iter(model.members)))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}_", dir=out.parent) as temporary:
        portable = Path(temporary) / "drgrade"
        write_portable(experiment, list(model.members), model.fit, model.params, portable)
        print(f"members: {', '.join(model.members)} of {model.experiment}")
        done = [
            kind
            for kind in KINDS
            if not kinds or kind in kinds
            if _written(kind, model, portable, Path(temporary) / kind, must=bool(kinds))
        ]
        for kind in done:
            os.replace(Path(temporary) / kind, portable / kind)
        if out.exists():
            os.replace(out, Path(temporary) / "old")
        os.replace(portable, out)
    print(f"{out}: {model.fit.n} photographs calibrate it; research use, not a diagnosis")


def _written(kind: str, model: Model, portable: Path, folder: Path, *, must: bool) -> bool:
    """Write one kind and print a line; return whether it was possible."""
    try:
        print(f"{kind}: {_writer(kind, model, portable)(folder)}")
    except UnsuitableError as error:
        if must:
            raise UserError(f"--{kind}: {error}") from None
        print(f"{kind}: left out; {error}")
        return False
    return True


def _writer(kind: str, model: Model, portable: Path) -> Callable[[Path], str]:
    """Return the function that writes one kind to a folder."""
    if kind == "mlflow":
        from drgrade.export.mlflow_model import write_mlflow

        return partial(write_mlflow, portable)
    if kind == "timm":
        from drgrade.export.timm_folder import write_timm

        return partial(write_timm, model)
    from drgrade.export.onnx import write_onnx

    return partial(write_onnx, model)


def _check(out: Path) -> None:
    """Raise a UserError if ``out`` is something that no export wrote, or cannot be written."""
    check_writable(out, "folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if EXPORT not in names or not names <= WRITTEN:
            raise UserError(f"{out}: holds something other than an export; name a new folder with --out")

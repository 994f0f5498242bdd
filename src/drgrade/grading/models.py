"""Saved graders: ``model.json`` with params and preprocessing, and ``model.safetensors`` with the weights."""

import json
from pathlib import Path
from typing import Any, TypeVar

from drgrade.errors import UserError
from drgrade.files import write_json
from drgrade.grading.base import GRADERS, Grader
from drgrade.images.preprocess import Preprocess
from drgrade.params import Crop, Encoded

AnyGrader = TypeVar("AnyGrader", bound=Grader)

MODEL = "model.json"
TENSORS = "model.safetensors"


def tensors_file(checkpoint: str | None) -> str:
    """File name of a model's weights: the selected ones, or a further checkpoint such as ``last``."""
    return TENSORS if checkpoint is None else f"model_{checkpoint}.safetensors"


def write_model(grader: Grader, folder: Path) -> None:
    """Write both files, the second only where there are tensors; and the further checkpoints."""
    network = grader.tensors()
    if network is not None:
        from drgrade.training import save_tensors

        save_tensors(network.state_dict(), folder / TENSORS)
        for name, weights in grader.checkpoints().items():
            save_tensors(weights, folder / tensors_file(name))
    about: dict[str, Any] = {
        "grader": grader.params.grader,
        "params": grader.params.model_dump(),
        "crop": grader.crop.model_dump(),
        "facts": grader.facts(),
        "output": "expected grade, 0-4",
        "use": "research only, not a diagnosis",
    }
    if isinstance(grader.params, Encoded):
        about["preprocess"] = grader.preprocess.record()
    write_json(about, folder / MODEL)


def read_model(kind: type[AnyGrader], folder: Path, checkpoint: str | None = None) -> AnyGrader:
    """Load the trained grader, of class ``kind``, in a folder; ``checkpoint``: see :func:`tensors_file`.

    Raises:
        UserError: a file is missing or damaged, or a tensor does not fit.
    """
    about = read_about(folder)
    try:
        grader = kind(kind.Params.model_validate(about["params"]), Crop.model_validate(about["crop"]))
        if "preprocess" in about:
            grader.preprocess = Preprocess.from_record(about["preprocess"])
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / MODEL}: not the description of a model ({reason}); train it again"
        ) from None
    path = folder / tensors_file(checkpoint)
    if checkpoint is not None and not path.exists():
        raise UserError(f"{path}: no such file; {_without_checkpoint(grader, checkpoint)}")
    if not path.exists():
        grader.rebuild(about["facts"], {})
        if grader.tensors() is not None:
            raise UserError(f"{path}: no such file; run the stage grade again")
        return grader
    from drgrade.checkpoints import pool_like, read_tensors

    found = read_tensors(path)
    grader.rebuild(about["facts"], {name: tuple(value.shape) for name, value in found.items()})
    network = grader.tensors()
    try:
        if network is not None:
            pool_like(network, found)
            network.load_state_dict(found)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the tensors of {folder / MODEL} ({reason})") from None
    return grader


def _without_checkpoint(grader: Grader, checkpoint: str) -> str:
    """What to do where a checkpoint was not saved."""
    if checkpoint not in getattr(grader.params, "checkpoints", []):
        return f"name {checkpoint} in the experiment's key checkpoints"
    return "run the stage grade again; where no photographs validate, only the checkpoint last is saved"


def load_model(folder: Path, checkpoint: str | None = None) -> Grader:
    """Load the trained grader in a folder, of any class.

    Args:
        folder: such as ``results/demo/grade/imagenet/seed0/model``.
        checkpoint: name of a further checkpoint; None: the selected weights.

    Raises:
        UserError: it holds no model, or a damaged one.
    """
    grader: Grader = GRADERS.get(read_about(folder)["grader"]).load(folder, checkpoint)
    return grader


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``model.json``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / MODEL
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        return {key: about[key] for key in ("grader", "params", "crop", "facts")} | about
    except FileNotFoundError:
        example = "results/demo/grade/imagenet/seed0/model"
        raise UserError(f"{path}: no such file; name a model's folder, like {example}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: not the description of a model ({error}); train it again") from None

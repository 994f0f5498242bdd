"""Reading ``params.yaml``: one line about what is wrong, with the path of the key."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from drgrade.errors import UserError
from drgrade.params.model import Params
from drgrade.params.pretraining import METHODS


def _one_line(error: ValidationError, source: str) -> str:
    problem = error.errors()[0]
    path = list(problem["loc"])
    # pydantic puts the method of a pretraining into the path, behind its name if it has one
    place = 2 if path[:1] == ["pretrain"] else 0
    if path[place : place + 1] and path[place] in METHODS:
        del path[place]
    key = ".".join(map(str, path))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = "no such key; the schema in workflow/schemas lists them"
    elif key:
        text = f"{text[0].lower()}{text[1:]}, not {problem['input']!r}"
    return f"{source}: {key}: {text}" if key else f"{source}: {text}"


def check(values: Any, source: str) -> Params:
    """Hold values to the model.

    Raises:
        UserError: one line with the key's path: an unknown key, a wrong type, an impossible combination.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def check_block(block: Any, text: str, source: str) -> Any:
    """One block, or one of several kinds of block, given as JSON on a verb's command line.

    Raises:
        UserError: not JSON, or not such a block.
    """
    try:
        return TypeAdapter(block).validate_json(text)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file is missing, is not YAML, or breaks the model.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    return check(values or {}, str(path))


def json_schema() -> str:
    """JSON Schema of ``params.yaml``, as committed in ``workflow/schemas``."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"

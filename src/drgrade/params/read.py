"""Reading ``params.yaml``: one line about what is wrong, with the path of the key."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from drgrade.errors import UserError
from drgrade.params.model import Params
from drgrade.params.pretraining import METHODS


def _lines(error: ValidationError, source: str) -> list[str]:
    """What is wrong, a line each."""
    return [line for problem in error.errors() for line in _lines_of(problem, source)]


def _lines_of(problem: Any, source: str) -> list[str]:
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
        given = problem["input"]
        text = f"{text[0].lower()}{text[1:]}" + ("" if isinstance(given, dict) else f", not {given!r}")
    # what Params refuses as a whole has a line for each reason
    return [f"{source}: {key}: {line}" if key else f"{source}: {line}" for line in text.splitlines()]


def check(values: Any, source: str) -> Params:
    """Hold values to the model.

    Raises:
        UserError: one line with the key's path: an unknown key, a wrong type, an impossible combination. Of
            several the first; :func:`wrong` has all.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_lines(error, source)[0]) from None


def wrong(path: Path) -> list[str]:
    """All that is wrong with the keys and values of a params file, a line each.

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        Params.model_validate(_values(path))
    except ValidationError as error:
        return _lines(error, str(path))
    return []


def check_block(block: Any, text: str, source: str) -> Any:
    """One block, or one of several kinds of block, given as JSON on a verb's command line.

    Raises:
        UserError: not JSON, or not such a block.
    """
    try:
        return TypeAdapter(block).validate_json(text)
    except ValidationError as error:
        raise UserError(_lines(error, source)[0]) from None


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file is missing, is not YAML, or breaks the model.
    """
    return check(_values(path), str(path))


def _values(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def json_schema() -> str:
    """JSON Schema of ``params.yaml``, as committed in ``workflow/schemas``."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"

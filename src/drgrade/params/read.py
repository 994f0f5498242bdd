"""Read and validate ``params.yaml``; errors are one line with the path of the key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from drgrade.errors import UserError
from drgrade.messages import printable, quoted, reason
from drgrade.params.model import Params
from drgrade.params.pretraining import METHODS

MOST_TEXT = 1_000_000
"""Maximum number of characters of a params file after its aliases are replaced by what they stand for."""


def _lines(error: ValidationError, source: str) -> Iterator[str]:
    """Yield at least one line for each validation error."""
    file = _composed(Path(source))
    for problem in error.errors():
        yield from _lines_of(problem, source, file)


def _lines_of(problem: Any, source: str, file: yaml.Node | None) -> list[str]:
    path = list(problem["loc"])
    # pydantic inserts the discriminator, a pretraining's method, into the path, after its name if any
    place = 2 if path[:1] == ["pretrain"] else 0
    if path[place : place + 1] and path[place] in METHODS:
        del path[place]
    key = ".".join(printable(str(part)) for part in path)
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = "no such key; the schema in workflow/schemas lists them"
    elif key:
        given = problem["input"]
        text = f"{text[0].lower()}{text[1:]}" + ("" if isinstance(given, dict) else f", not {quoted(given)}")
        if problem["type"] in ("float_type", "int_type") and isinstance(given, str):
            text += _as_number(given)
    number = _line_of(file, path)
    where = f" (line {number})" if number else ""
    # errors of the validator of Params have one line for each reason
    return [f"{source}: {key}: {line}{where}" if key else f"{source}: {line}" for line in text.splitlines()]


def _composed(file: Path) -> yaml.Node | None:
    """The nodes of a params file, with their lines; None if the values do not come from a file."""
    try:
        return yaml.compose(file.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _line_of(node: yaml.Node | None, path: list[Any]) -> int | None:
    """Line number of a key in a params file, or of its block if the key is absent; None without either."""
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            inner = {key.value: (key.start_mark.line, value) for key, value in node.value}.get(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            inner = node.value[part].start_mark.line, node.value[part]
        else:
            inner = None
        if inner is None:
            break
        line, node = inner[0] + 1, inner[1]
    return line


def _as_number(text: str) -> str:
    """How to write a number that YAML reads as text, such as 1e-3; empty if it is not a number."""
    mantissa, e, exponent = text.lower().partition("e")
    try:
        float(text)
    except ValueError:
        return ""
    dotted = mantissa if "." in mantissa else f"{mantissa}.0"
    signed = exponent if exponent[:1] in ("+", "-") else f"+{exponent}"
    return f" (text); write {dotted}e{signed}" if e else f" (text); write {text} without quotes"


def check(values: Any, source: str) -> Params:
    """Validate values against the model.

    Raises:
        UserError: an unknown key, a wrong type or an impossible combination; one line with the key's path,
            about the first error only; :func:`wrong` returns all.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(next(_lines(error, source))) from None


def wrong(path: Path) -> list[str]:
    """Return all errors in the keys and values of a params file, one line each.

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        Params.model_validate(read_yaml(path))
    except ValidationError as error:
        return list(_lines(error, str(path)))
    return []


def check_block(block: Any, text: str, source: str) -> Any:
    """Parse a block, or one of a union of blocks, given as JSON on a verb's command line.

    Raises:
        UserError: the text is not JSON or not a valid block.
    """
    try:
        return TypeAdapter(block).validate_json(text)
    except ValidationError as error:
        raise UserError(next(_lines(error, source))) from None


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit the model.
    """
    return check(read_yaml(path), str(path))


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses repeated keys, of which PyYAML would silently take the last.

    It also refuses aliases of aliases that stand for more text than memory holds.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _length(node, {}) > MOST_TEXT:
            raise UserError(f"more than {MOST_TEXT} characters with its aliases written out; shorten it")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            again = key.start_mark.line + 1
            if key.value in lines:
                both = f"in lines {lines[key.value]} and {again}"
                raise UserError(f"key {quoted(key.value)} stands twice, {both}; keep one")
            lines[key.value] = again
        return super().construct_mapping(node, deep)


def _length(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """Number of characters of a node, and 1 for each node, with aliases written out.

    Args:
        node: it may occur several times in the document.
        known: lengths of other nodes; None for those that contain this one.

    Raises:
        UserError: a node contains itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if node not in known:
        known[node] = None
        inner = (
            node.value
            if isinstance(node, yaml.SequenceNode)
            else [part for pair in node.value for part in pair]
        )
        known[node] = 1 + sum(_length(part, known) for part in inner)
    length = known[node]
    if length is None:
        raise UserError(f"line {node.start_mark.line + 1}: contains itself, by an alias; write it out")
    return length


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file in UTF-8 without repeated keys.

    Raises:
        UserError: the file is missing, in another encoding, not YAML, or repeats a key; names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return yaml.load(text, _Loader) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({reason(error)})") from None
    except UserError as error:  # a repeated key, or an alias
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; is it a params file?") from None
    except (ValueError, KeyError, AttributeError) as error:  # PyYAML's, on values such as 2026-13-45
        raise UserError(f"{path}: a value is not what it seems to be ({reason(error)}); quote it") from None


def json_schema() -> str:
    """Return the JSON Schema of ``params.yaml``, as committed in ``workflow/schemas``."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"

"""The verb ``grid``: queue the combinations of a grid as experiments of DVC, and compare them.

A grid is a YAML file with the name of an experiment and values of its keys, such as
``params/grids/finetune.yaml``.
"""

import copy
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import yaml
from pydantic import Field, field_validator

from drgrade.data.listing import raw_root
from drgrade.encoders import WEIGHTS
from drgrade.errors import UserError
from drgrade.evaluate.selection import VAL_QWK
from drgrade.params import Params, check, check_block, read_yaml
from drgrade.params.block import Block, Name
from drgrade.tracking import tracking_uri

PARAMS = Path("params.yaml")
"""The file that ``dvc exp run`` changes."""
Word = Annotated[str, Field(pattern=r"^[\w ./:=+-]*$")]
"""Text without characters that have a meaning in Hydra's syntax."""
Scalar = bool | int | float | Word | None


class Grid(Block):
    """Values of keys of one experiment; all combinations are tried."""

    experiment: Name
    """A key of ``experiments`` in params.yaml."""
    over: Annotated[
        dict[str, Annotated[list[Scalar | list[Scalar]], Field(min_length=1)]], Field(min_length=1)
    ]
    """Values by key, dotted for a key of a nested block such as ``augment.rotation``."""

    @field_validator("over")
    @classmethod
    def _each_once(cls, over: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in over.items():
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            if twice:
                raise ValueError(f"{key}: {twice[0]} stands twice; leave one out")
        return over


class Setting(NamedTuple):
    """One combination.

    Attributes:
        name: its name as an experiment of DVC.
        experiment: the experiment whose keys are set.
        values: its values by key of the grid.
    """

    name: str
    experiment: str
    values: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """The values by dotted key of params.yaml."""
        return {f"experiments.{self.experiment}.{key}": value for key, value in self.values.items()}


class Row(NamedTuple):
    """A setting with its QWK on validation and on test photographs; None if they are not known."""

    setting: Setting
    validated: float | None
    tested: float | None


def print_commands(file: Path) -> None:
    """Print the command that queues each combination of a grid.

    Raises:
        UserError: the grid, or a combination, is not valid.
    """
    for setting in settings(file):
        print(shlex.join(["uv", "run", *command(setting)]))


def queue(file: Path) -> None:
    """Queue each combination of a grid, and print the command that runs them.

    Raises:
        UserError: the grid, or a combination, is not valid, or DVC refuses one.
    """
    for setting in settings(file):
        if subprocess.run(command(setting), check=False).returncode:
            raise UserError(f"dvc exp run: {setting.name} was not queued; the message above says why")
    print(f"run them: {start_command(check(read_yaml(PARAMS), str(PARAMS)))}")


def print_best(file: Path) -> None:
    """Print the results of a grid, best QWK on validation photographs first.

    Raises:
        UserError: the grid is not valid, or DVC cannot show its experiments.
    """
    known, params = settings(file), check(read_yaml(PARAMS), str(PARAMS))
    shown = subprocess.run(["dvc", "exp", "show", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if shown.returncode:
        raise UserError("dvc exp show: failed; its message stands above")
    print("\n".join(lines(compared(known, json.loads(shown.stdout), params.roles.grade))))


def settings(file: Path) -> list[Setting]:
    """Return all combinations of a grid, each checked with the rest of params.yaml.

    Raises:
        UserError: the grid, or a combination, is not valid.
    """
    grid: Grid = check_block(Grid, json.dumps(read_yaml(file)), str(file))
    params = read_yaml(PARAMS)
    if grid.experiment not in check(params, str(PARAMS)).experiments:
        raise UserError(f"{file}: experiment: {grid.experiment!r} is not one of experiments in {PARAMS}")
    found = []
    for chosen in itertools.product(*grid.over.values()):
        values = dict(zip(grid.over, chosen, strict=True))
        name = "-".join([grid.experiment, *(f"{key}_{slug(value)}" for key, value in values.items())])
        setting = Setting(name, grid.experiment, values)
        check(changed(params, setting.params), str(file))
        check_numbers(setting, file)
        found.append(setting)
    return found


def slug(value: Any) -> str:
    """Return a value as part of the name of a Git reference: ``0.001``, ``0.8-1.2`` for ``[0.8, 1.2]``."""
    return re.sub(r"[^\w.-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-.")


def changed(params: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return params with other values, by dotted key."""
    params = copy.deepcopy(params)
    for key, value in values.items():
        *path, last = key.split(".")
        block = params
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value
    return params


def check_numbers(setting: Setting, file: Path) -> None:
    """Check that numbers are still numbers after DVC has written them.

    It writes 0.00001 as ``1e-05``, which is a number in YAML 1.2, but text for PyYAML and so for Snakemake.

    Raises:
        UserError: one is not.
    """
    for key, value in setting.values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and isinstance(yaml.safe_load(repr(number)), str):
                raise UserError(
                    f"{file}: over.{key}: DVC writes {number!r}, which Snakemake reads as text; take a value "
                    f"with two digits, such as {number * 1.1:.1e}"
                )


def command(setting: Setting) -> list[str]:
    """Return the command that queues a setting as an experiment of DVC."""
    copied = [option for path in copied_paths() for option in ("--copy-paths", str(path))]
    # ++ sets a key whether or not params.yaml has it; JSON is valid in Hydra's syntax, which DVC reads
    values = [f"++{key}={json.dumps(value, ensure_ascii=False)}" for key, value in setting.params.items()]
    changes = [option for value in values for option in ("--set-param", value)]
    return ["dvc", "exp", "run", "--queue", "--name", setting.name, *copied, *changes]


def copied_paths() -> list[Path]:
    """Return what an experiment in a folder of its own needs, and neither Git nor DVC brings there.

    These are Snakemake's records of what made the results, without which it refuses to run, and start
    weights.
    """
    weights = sorted(path for path in WEIGHTS.glob("*") if path.is_file() and path.name != "README.md")
    return [*(path for path in [Path(".snakemake")] if path.is_dir()), *weights]


def start_command(params: Params) -> str:
    """Return the command that runs the queue, for a shell.

    Each experiment runs in a folder of its own, so that paths of the tracking server and of raw photographs
    must be absolute.
    """
    roots = {f"DRGRADE_{name.upper()}_ROOT": raw_root(name).absolute() for name in params.datasets}
    variables = [f"MLFLOW_TRACKING_URI={tracking_uri()}", *(f"{key}={root}" for key, root in roots.items())]
    return shlex.join(["env", *variables, "uv", "run", "dvc", "queue", "start"])


def compared(known: Iterable[Setting], shown: Any, graded: str) -> list[Row]:
    """Return the results of all settings, best QWK on validation photographs first, unknown ones last.

    Args:
        known: the settings of a grid.
        shown: what ``dvc exp show --json`` printed.
        graded: name of the dataset ``roles.grade``.
    """
    path = f"results/{graded}/evaluate/metrics.json"
    runs = [run for one in shown for group in one["experiments"] or () for run in group["revs"]]
    metrics = {run["name"]: ((run["data"] or {}).get("metrics") or {}).get(path) or {} for run in runs}
    rows = []
    for setting in known:
        values = (metrics.get(setting.name, {}).get("data") or {}).get(setting.experiment, {})
        rows.append(Row(setting, values.get(VAL_QWK), values.get("qwk")))
    return sorted(rows, key=lambda row: (row.validated is None, -(row.validated or 0.0)))


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the lines to print.

    The QWK on test photographs is told for the best setting only, as nothing may be chosen by it.
    """
    missing = "–"
    table = pd.DataFrame(
        {
            "validation QWK": missing if row.validated is None else f"{row.validated:.3f}",
            **{key: json.dumps(value) for key, value in row.setting.values.items()},
            "name": row.setting.name,
        }
        for row in rows
    )
    shown = table.to_string(index=False).splitlines()
    best = rows[0]
    if best.validated is None:
        return [
            *shown,
            "no QWK on validation photographs yet: `uv run dvc queue status` lists the queue",
        ]
    return [
        *shown,
        f"best by validation: {best.setting.name}; its QWK on test photographs: {best.tested:.3f}",
        f"take it over: uv run dvc exp apply {best.setting.name} && uv run drgrade sync",
    ]

"""Read the results that the report shows, and format intervals."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from drgrade.errors import UserError

FIGURES = ("leaderboard", "confusion", "roc", "reliability", "risk_coverage", "learning_curves")
"""Figures of the stage evaluate that the report shows."""
TABLES = ("leaderboard", "external", "subgroups", "operating", "sets", "errors", "learning_curves")
"""Tables of the stage evaluate that the report reads."""


def read_csv(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV.

    Args:
        path: its path.
        stage: the stage that writes it.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table ({error}); run the stage {stage}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); run the stage that writes it") from None


def intervals(table: pd.DataFrame, name: str) -> list[str | None]:
    """Return the interval of a column in each row as text, None where it has none."""
    ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return [None if pd.isna(low) else f"{low:.3f} to {high:.3f}" for low, high in ends]


@dataclass(frozen=True)
class Results:
    """What the stage evaluate found.

    Attributes:
        folder: the stage's folder, with ``subgroups.csv`` and ``figures/``.
        metrics: ``metrics.json``.
        tables: the tables TABLES by name.
    """

    folder: Path
    metrics: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.folder / "figures"

    @classmethod
    def read(cls, folder: Path, experiments: Iterable[str]) -> Self:
        """Read the results of these experiments.

        Raises:
            UserError: a file is missing or damaged, or an experiment was not measured.
        """
        metrics = read_json(folder / "metrics.json")
        unmeasured = sorted(set(experiments) - set(metrics))
        if unmeasured:
            raise UserError(
                f"{folder / 'metrics.json'}: lacks the experiment {unmeasured[0]}; "
                "run the stage evaluate again"
            )
        found = cls(folder, metrics, {name: read_csv(folder / f"{name}.csv", "evaluate") for name in TABLES})
        for name in FIGURES:
            if not (found.figures / f"{name}.png").exists():
                raise UserError(f"{found.figures / name}.png: no such file; run the stage evaluate")
        return found

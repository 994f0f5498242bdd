"""The course of a training: ``history.csv`` beside its ``training.json``, a row for each epoch."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from drgrade.files import atomic_write, write_json

HISTORY = "history.csv"
VARYING = ("images_per_s", "memory_gb")
"""Ends of the names of metrics that differ from run to run, which are left out."""


class History:
    """Metrics of each epoch of a training, including those that an interrupted process has reported.

    Args:
        kept: file in which the history is kept until the training ends (:meth:`keep`). If it is there, the
            history begins with its epochs.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.epochs: dict[int, dict[str, float]] = {}
        if kept.exists():
            self.epochs = {int(epoch): values for epoch, values in json.loads(kept.read_text()).items()}

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add metrics of an epoch, counted from 1; an epoch that is run again replaces its old values."""
        same = {name: float(value) for name, value in values.items() if not name.endswith(VARYING)}
        self.epochs.setdefault(epoch, {}).update(same)

    def keep(self) -> None:
        """Write the history to the file ``kept``."""
        write_json({str(epoch): values for epoch, values in self.epochs.items()}, self.kept)

    def write(self, path: Path) -> None:
        """Write the history as CSV: ``epoch``, then a column for each metric, with 6 significant digits.

        Only a header if the training has no epochs.
        """
        epochs = sorted(self.epochs)
        rows = [{"epoch": epoch, **self.epochs[epoch]} for epoch in epochs]
        names = sorted({name for values in self.epochs.values() for name in values})
        with atomic_write(path) as partial:
            pd.DataFrame(rows, columns=["epoch", *names]).to_csv(
                partial, index=False, float_format="%.6g", lineterminator="\n"
            )

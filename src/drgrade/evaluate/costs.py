"""What the trainings of each experiment cost, as far as their ``training.json`` says."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drgrade.errors import UserError

COSTS = ("parameters", "train_minutes", "peak_memory_gb", "images_per_s")
"""Keys of ``training.json`` and columns of the leaderboard, of one training: number of weights, minutes, peak
memory in GB (1e9 bytes), training images per second."""


def training_costs(manifests: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """Return the costs by experiment: the mean over its trainings, for memory the highest.

    Args:
        manifests: ``training.json`` of each training; a file that is not there is left out.

    Returns:
        COSTS by experiment; None where no training has the key.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for path in manifests:
        if path.is_file():
            try:
                record = json.loads(path.read_text())
                found.setdefault(record["experiment"], []).append(record)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: not a training's record ({error}); train it again") from None
    return {
        name: {
            cost: _together(cost, [one[cost] for one in records if one.get(cost) is not None])
            for cost in COSTS
        }
        for name, records in found.items()
    }


def _together(cost: str, values: Sequence[float]) -> float | None:
    """One number for all trainings of an experiment."""
    if not values:
        return None
    if cost == "parameters":
        return round(np.mean(values))
    return float(np.max(values) if cost == "peak_memory_gb" else np.mean(values))

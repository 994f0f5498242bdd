"""Tiny trainings of the grader ``deepmt``: params, photographs, phases."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from drgrade.grading.base import Grader, Job, Photographs, Start
from drgrade.grading.deepmt import DeepMT, Params
from drgrade.grading.deepmt_network import new_network
from drgrade.grading.deepmt_phases import Phase
from drgrade.lesions.mask_store import BITS, Masks
from drgrade.params import Crop
from drgrade.tracking import NullRun

SIDE = 64
"""Side of crops; low-resolution images have half of it."""
PHASES = ("restoration", "grading", "joint")


def settings(**changed: Any) -> Params:
    values: dict[str, Any] = {
        "encoder": "test_resnet", "start": "random", "input_size": SIDE // 2, "scale": 2, "hidden": 8,
        "super_resolution_width": 2, "super_resolution_blocks": 1, "segmentation_width": 2,
        "grids": [2, 1], "loss_weights": {"pseudo": 1.0},
        **{phase: {"epochs": 2, "batch_size": 2, "lr": 1e-3} for phase in PHASES},
    }  # fmt: skip
    return Params(**values | changed)


def table(rows: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"i{row}" for row in rows], "grade": [row % 5 for row in rows]}).assign(
        row=rows
    )


def job(run: Any = None, val: tuple[int, ...] = (4, 5, 6), count: int = 4, key: str = "key") -> Job:
    """Graded photographs 0 to ``count`` - 1; ``val`` to validate on; 7 to 9 with the lesions that are red."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    drawn = (images[7:, ..., 0] > 200) * np.uint8(BITS["MA"] | BITS["EX"])
    masks = Masks(drawn, np.arange(3), np.array([15, BITS["MA"], 15], np.uint8))
    parts = [Photographs(images, table(list(rows))) for rows in (range(count), val)]
    return Job(
        *parts, Start("random"), 3, "t", key, run or NullRun(),
        masked=Photographs(images, table([7, 8, 9]), masks=masks),
    )  # fmt: skip


def trained(run: Any = None, params: Params | None = None, **options: Any) -> DeepMT:
    grader = DeepMT(params or settings(), Crop(size=SIDE))
    grader.fit(job(run, **options))
    return grader


def state(grader: Grader) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in grader.tensors().state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def phase(kind: type[Phase], params: Params | None = None, **options: Any) -> Any:
    """A phase as ``train`` begins it, with nothing trained yet."""
    torch.manual_seed(0)
    params = params or settings()
    network = new_network(params, "random")
    made = kind(network, params, job(**options))
    network.requires_grad_(False)
    for part in made.trained():
        part.requires_grad_(True)
    made.set_modes()
    return made

"""The stage ``features``: features of photographs by trained networks, averaged over test-time transforms.

The mean and standard deviation of a network's features over 20 to 50 transforms, and those of the fellow eye,
are the input of the blend of Kaggle's second-placed solution of 2015 (:mod:`drgrade.grading.blend`).
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.files import sha256
from drgrade.grading.base import Grader, Photographs
from drgrade.grading.feature_sets import write_features
from drgrade.grading.models import load_model, tensors_file
from drgrade.grading.photographs import parts_of
from drgrade.grading.stage import graded_external
from drgrade.images.dataset import CroppedDataset
from drgrade.images.quasi import quasi_random
from drgrade.params import Augment, Encoded, Features
from drgrade.rank import rank

if TYPE_CHECKING:
    from drgrade.images.augment import Plan

log = logging.getLogger(__name__)


def extract(
    name: str,
    params: Features,
    data: CroppedDataset,
    external: Sequence[CroppedDataset],
    models: Sequence[Path],
    *,
    seed: int,
    fold: int | None,
    out: Path,
) -> None:
    """Store features of all graded photographs, see :mod:`drgrade.grading.feature_sets`.

    With several models, each of which has left out one part of the training patients, a training photograph's
    features come from the model that has not seen it, and others' from each model.

    Args:
        name: name of the feature set.
        params: its block of ``params.yaml``.
        data: dataset that the models were trained on.
        external: datasets for testing only.
        models: folders of the trained models: one, or one for each left-out part, in order.
        seed: their seed.
        fold: their test fold; None with a hold-out split.
        out: output folder.

    Raises:
        UserError: a model is missing or has no encoder, or there is nothing to read.
    """
    weights = None if params.checkpoint == "selected" else params.checkpoint
    tables, means, stds = [], [], []
    for number, folder in enumerate(models):
        _check_part(folder, number, len(models))
        grader, changes = load_network(params, folder)
        part = None if len(models) == 1 else (number, len(models))
        for photographs in _photographs(grader, data, external, seed=seed, fold=fold, part=part):
            mean, std = grader.moments(photographs, changes)
            found = photographs.table[["image_id"]].assign(dataset=photographs.dataset, model=number)
            tables.append(found)
            means.append(mean)
            stds.append(std)
            log.info("%s: model %d, %d photographs of %s", name, number, len(found), photographs.dataset)
    if rank() == 0:  # the other processes have the same features
        rows = pd.concat(tables, ignore_index=True)
        rows["row"] = range(len(rows))
        facts = _facts(params, models, weights)
        write_features(out, rows, np.concatenate(means), np.concatenate(stds), facts)


def load_network(params: Features, folder: Path) -> "tuple[Grader, Plan | None]":
    """Load a model that gives a feature set, and the transforms that its features are averaged over.

    Raises:
        UserError: the model is missing or damaged.
    """
    grader = load_model(folder, None if params.checkpoint == "selected" else params.checkpoint)
    if params.transforms == 1 or not isinstance(grader.params, Encoded):
        return grader, None
    preprocess = grader.preprocess
    return grader, quasi_random(params, preprocess.augment or Augment(), preprocess.axes)


def _check_part(folder: Path, number: int, count: int) -> None:
    """Raise a UserError if a model left out another part than it should, so has seen its photographs."""
    record = folder.parent / "training.json"
    if record.is_file():
        wanted, left_out = [number, count] if count > 1 else None, json.loads(record.read_text()).get("part")
        if left_out != wanted:
            raise UserError(
                f"{folder}: left out part {left_out}, expected {wanted}; give the models in order"
            )


def _photographs(
    grader: Grader,
    data: CroppedDataset,
    external: Sequence[CroppedDataset],
    *,
    seed: int,
    fold: int | None,
    part: tuple[int, int] | None,
) -> list[Photographs]:
    """The photographs whose features one model gives: of the own dataset, then of each external one."""
    parts = parts_of(
        data.graded(), seed=seed, fold=fold, select=getattr(grader.params, "select", "last"),
        label_fraction=grader.params.label_fraction, part=part,
    )  # fmt: skip
    splits = [parts["train" if part is None else "left_out"], parts["val"], parts["test"]]
    own = Photographs(data.images, pd.concat(splits, ignore_index=True), dataset=data.name)
    return [own, *(Photographs(one.images, graded_external(one), dataset=one.name) for one in external)]


def _facts(params: Features, models: Sequence[Path], weights: str | None) -> dict[str, Any]:
    """Content of ``features.json``."""
    files = [folder / tensors_file(weights) for folder in models]
    lacking = [path for path in files if not path.exists()]
    if lacking:
        raise UserError(f"{lacking[0]}: no such file; run the stage grade again")
    return {
        "models": len(models),
        "in_sample": len(models) == 1,
        "params": params.model_dump(),
        "weights": [sha256(path) for path in files],
    }

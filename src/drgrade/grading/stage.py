"""The stage ``grade``: every seed and fold of one experiment, in one process."""

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.encoders import start_record
from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.files import sha256, write_json
from drgrade.grading.base import GRADERS, Grader, Photographs, Training, graded, splits
from drgrade.images.store import CropStore
from drgrade.params import Crop, Experiment, Grade
from drgrade.schema import GRADES, PREDICTIONS, write_table
from drgrade.splits.assign import label_subset
from drgrade.tracking import models_digest, track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class External:
    """A dataset that only tests: all of its graded photographs, by models that nothing of it has shaped."""

    name: str
    index: Path
    crops: Path
    store: Path


def grade(
    name: str,
    experiment: Experiment,
    params: Grade,
    crop: Crop,
    *,
    dataset: str,
    index: Path,
    crops: Path,
    store: Path,
    weights: Path | None,
    predictions: Path,
    manifest: Path,
    models: Path,
    external: Sequence[External] = (),
) -> None:
    """Train and test one experiment.

    Args:
        name: of the experiment.
        experiment: its row of ``params.yaml``.
        params: the ``grade`` block, in which the experiment may set keys apart.
        crop: the ``crop`` block, kept with each model so that it can grade new photographs.
        dataset: it learns from.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        store: ``store.json``, its shards beside it.
        weights: folder with ``encoder.safetensors`` (or ``encoder_fold<k>.safetensors``) when
            ``experiment.start`` names a pretraining method.
        predictions: table to write: validation, test and external rows of every seed.
        manifest: ``models.json`` to write: every model's seed, fold, start weights and digests.
        models: folder to write: a sub-folder for each model.
        external: datasets to test on once more; with cross-validation the mean over the folds' models.

    Raises:
        UserError: there is nothing to train on, the start weights are missing, or an external dataset has
            nothing to test on.
    """
    params = experiment.graded_by(params)
    table = graded(index, crops)
    images = CropStore(store)
    outside = [(one.name, CropStore(one.store), graded_external(one)) for one in external]
    shutil.rmtree(models, ignore_errors=True)
    rows, listed = [], []
    votes: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
    with track("grade", name, {"experiment": experiment.model_dump(), "grade": params.model_dump()}) as run:
        run.dataset("crops", crops)
        for seed, fold, parts in trainings(table, experiment, params.select):
            label = f"seed{seed}" + ("" if fold is None else f"_fold{fold}")
            start = start_weights(experiment.start, weights, fold)
            inputs = index, crops, store, Path(start)
            about = {"seed": seed, "fold": fold, "train": len(parts["train"])}
            with run.child(f"{name} {label}", about) as child:
                training = Training(
                    train=Photographs(images, parts["train"]),
                    val=Photographs(images, parts["val"]),
                    start=start,
                    seed=seed,
                    name=f"{name} {label}",
                    key="/".join(sha256(path) for path in inputs if path.is_file()),
                    run=child,
                )
                grader, began = trained(experiment, params, training, crop, models / label)
            for part in ("val", "test"):
                probabilities = grader.predict(images, parts[part]["row"].to_numpy(np.int64))
                rows.append(
                    predicted(parts[part], probabilities, dataset, split=part, experiment=name, seed=seed)
                )
            for other, pictures, photographs in outside:
                votes[seed, other].append(grader.predict(pictures, photographs["row"].to_numpy(np.int64)))
            files = digests(models / label, models)
            listed.append({"seed": seed, "fold": fold, "start": began, "files": files})
        for other, _, photographs in outside:
            for seed in experiment.seeds:
                mean = np.mean(votes[seed, other], axis=0)
                rows.append(predicted(photographs, mean, other, split="external", experiment=name, seed=seed))
        write_table(pd.concat(rows), predictions, PREDICTIONS)
        write_json({"experiment": name, "grader": experiment.grader, "models": listed}, manifest)
        run.artifact(models, "models")
        run.artifact(predictions)
        run.tags({"models": models_digest(manifest)})


def trained(
    experiment: Experiment, params: Grade, training: Training, crop: Crop, folder: Path
) -> tuple[Grader, dict[str, Any]]:
    """One model, fitted and saved with all it takes to use it, and what its weights began as."""
    grader: Grader = GRADERS.get(experiment.grader)(experiment.encoder, params.model_dump())
    grader.fit(training)
    grader.save(folder)
    remember(folder / "model.json", crop)
    began = started_from(folder, experiment.encoder, training.start, training.seed)
    training.run.params({"start_weights": began})
    return grader, began


def trainings(
    table: pd.DataFrame, experiment: Experiment, select: str
) -> Iterator[tuple[int, int | None, dict[str, pd.DataFrame]]]:
    """Every training of an experiment: seed, fold (or None) and the rows of its splits.

    Raises:
        UserError: there is nothing to train on.
    """
    for seed in experiment.seeds:
        for fold, parts in splits(table, select):
            train = labelled(parts["train"], experiment.label_fraction, seed)
            if train.empty:
                raise UserError("no graded training photographs; look at status and reason in index.parquet")
            yield seed, fold, parts | {"train": train}


def remember(path: Path, crop: Crop) -> None:
    """Add the crop to a model's description."""
    write_json(json.loads(path.read_text()) | {"crop": crop.model_dump()}, path)


def graded_external(external: External) -> pd.DataFrame:
    """The same of an external dataset, which is not left out of the results in silence.

    Raises:
        UserError: none of its photographs has a grade and a crop.
    """
    table = graded(external.index, external.crops)
    if table.empty:
        raise UserError(
            f"roles.external: {external.name!r} has no graded photograph with a crop to test on; "
            "take it out, or look at status and reason in its index.parquet"
        )
    return table


def labelled(train: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """The share of the training photographs whose grades may be used."""
    return train if fraction == 1 else train[train["image_id"].isin(label_subset(train, fraction, seed))]


def start_weights(start: str, weights: Path | None, fold: int | None) -> str:
    """What the encoder starts from: a word, the user's file, or this fold's pretrained encoder.

    Raises:
        UserError: the pretrained encoder is not there.
    """
    if weights is None:
        return start
    own = weights / f"encoder_fold{fold}.safetensors"
    path = own if fold is not None and own.exists() else weights / "encoder.safetensors"
    if not path.exists():
        raise UserError(f"{path}: no such file; run the stage pretrain for {start!r} first")
    return str(path)


def started_from(model: Path, encoder: str, start: str, seed: int) -> dict[str, Any]:
    """What the weights in a model's folder began as; empty for a grader that has none."""
    trained = (model / "model.safetensors").exists()
    return start_record(encoder, start, seed) if trained else {}


def predicted(
    table: pd.DataFrame, probabilities: np.ndarray, dataset: str, *, split: str, experiment: str, seed: int
) -> pd.DataFrame:
    """The rows of ``predictions.parquet`` for photographs (n) and their grade probabilities (n, 5)."""
    score = probabilities @ np.array(GRADES)
    filled: dict[str, Any] = {f"p{grade}": probabilities[:, grade] for grade in GRADES}
    filled |= {
        "dataset": dataset,
        "split": split,
        "score": score,
        "predicted": to_grades(score),
        "experiment": experiment,
        "seed": seed,
    }
    return table[["image_id", "patient_id", "eye", "grade"]].assign(**filled)


def digests(folder: Path, base: Path) -> dict[str, str]:
    """SHA-256 of every file of one model, by its path below the models' folder."""
    return {str(path.relative_to(base)): sha256(path) for path in sorted(folder.iterdir())}

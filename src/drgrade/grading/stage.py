"""The stage ``grade``: train and test one experiment with one seed and fold, in a folder of its own."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.encoders import imagenet_file, start_record
from drgrade.errors import UserError
from drgrade.evaluate.metrics import to_grades
from drgrade.files import sha256, write_json
from drgrade.grading import feature_sets
from drgrade.grading.base import GRADERS, Grader, Job, Photographs, Start
from drgrade.grading.cost import COST, Meter, parameters
from drgrade.grading.history import HISTORY
from drgrade.grading.models import MODEL, TENSORS, load_model
from drgrade.grading.photographs import Parts, parts_of
from drgrade.images.dataset import CroppedDataset
from drgrade.lesions import mask_store
from drgrade.params import Crop, Encoded, Experiment
from drgrade.params.start import EXPERIMENT
from drgrade.params.trainings import TrainingId
from drgrade.rank import rank
from drgrade.resume import training_key
from drgrade.schema import GRADES, LESION_BOXES, MASKS, PREDICTIONS, conform, read_table, write_table
from drgrade.tracking import models_digest, track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a training.

    Attributes:
        data: the dataset to train and test on.
        external: datasets for testing only, with all of their graded photographs.
        start: file or folder of the start weights; None for ``random`` and ``imagenet``.
        members: folders of the trainings (of the same seed and fold) that the grader builds on, by
            experiment.
        lesions: ``lesions.parquet``, for graders that need boxes.
        masked: the dataset with lesion masks, after its stage lesion_masks, for graders that need masks.
        features: folders of the stage features, by name of the set, for graders that are fitted on them.
    """

    data: CroppedDataset
    external: Sequence[CroppedDataset] = ()
    start: Path | None = None
    members: Mapping[str, Path] = field(default_factory=dict)
    lesions: Path | None = None
    masked: CroppedDataset | None = None
    features: Mapping[str, Path] = field(default_factory=dict)

    def files(self, start: Start) -> list[Path]:
        """All files that the trained model depends on."""
        data = [self.data.index_file, self.data.crops_file, self.data.store_file]
        models = [folder / "model" / name for folder in self.members.values() for name in (MODEL, TENSORS)]
        masked: list[Path] = []
        if self.masked is not None:
            masks = [self.masked.masks_folder / name for name in (mask_store.ARRAY, mask_store.TABLE)]
            masked = [self.masked.index_file, self.masked.crops_file, self.masked.store_file, *masks]
        sets = [folder / name for folder in self.features.values() for name in feature_sets.FILES]
        given = [path for path in (self.lesions, start.path) if path is not None]
        return [*data, *models, *masked, *sets, *given]


def grade(
    name: str,
    experiment: Experiment,
    crop: Crop,
    inputs: Inputs,
    *,
    seed: int,
    fold: int | None,
    part: tuple[int, int] | None = None,
    out: Path,
) -> None:
    """Train and test one model.

    Writes ``out/model/`` (``model.json``, ``model.safetensors``), ``out/predictions.parquet`` (validation,
    test and external rows; validation and left-out rows of a training that leaves out a part),
    ``out/training.json`` (seed, fold, start weights, number of weights, digests of the model),
    ``out/history.csv`` (metrics of each epoch, see :class:`.History`) and ``out/cost.json`` (time and memory,
    see :class:`.Meter`, and the digest of ``training.json``).

    Args:
        name: name of the experiment.
        experiment: its row of ``params.yaml`` with the shared keys of the block ``grade`` filled in.
        crop: the ``crop`` block, kept with the model so that it can grade new photographs.
        inputs: datasets and files to read.
        seed: seed of all random numbers.
        fold: the test fold, None with a hold-out split.
        part: (k, n) leaves out part k of n of the training patients (``out_of_fold``); None trains on all.
        out: output folder.

    Raises:
        UserError: there is nothing to train on, an input is missing, or an external dataset has nothing to
            test on.
    """
    table = inputs.data.graded()
    outside = {one.name: graded_external(one) for one in inputs.external}
    parts = parts_of(
        table, seed=seed, fold=fold, select=getattr(experiment, "select", "last"),
        label_fraction=experiment.label_fraction, part=part,
    )  # fmt: skip
    grader: Grader = GRADERS.get(experiment.grader)(experiment, crop)
    start = start_of(experiment, inputs.start, fold)
    known = known_of(grader, inputs)
    masked = masked_of(grader, inputs)
    label = f"{name} {TrainingId(seed, fold, part).label.replace('_', ' ')}"
    about = {"experiment": experiment.model_dump(), "seed": seed, "fold": fold, "train": len(parts["train"])}
    with track("grade", label, about) as run:
        run.dataset("crops", inputs.data.crops_file)
        key = key_of(experiment, crop, inputs, start, parts, seed=seed, fold=fold)
        meter = Meter(run, label, key)
        job = Job(
            train=Photographs(inputs.data.images, parts["train"], dataset=inputs.data.name, **known),
            val=Photographs(inputs.data.images, parts["val"], dataset=inputs.data.name, **known),
            start=start,
            seed=seed,
            name=label,
            key=key,
            run=meter,
            masked=masked,
        )
        with meter.running():
            grader.fit(job)
        run.metrics({"peak_memory_gb": meter.peak})  # graders without a network too
        columns = {"experiment": name, "seed": seed, "fold": fold}
        rows = []
        own = inputs.data
        for split in ("val", "test") if part is None else ("val", "left_out"):
            photographs = Photographs(own.images, parts[split], dataset=own.name, **known)
            rows.append(predicted(grader, photographs, split=split, **columns))
        for other in inputs.external if part is None else ():
            elsewhere = {key: known[key] for key in ("members", "features")}
            photographs = Photographs(other.images, outside[other.name], dataset=other.name, **elsewhere)
            rows.append(predicted(grader, photographs, split="external", **columns))
        if rank() == 0:  # the other processes have the same model and predictions
            began = save(grader, out / "model", start, seed)
            run.params({"start_weights": began})
            write_table(pd.concat(rows), out / "predictions.parquet", PREDICTIONS)
            listed: dict[str, Any] = {
                "grader": experiment.grader,
                "start": began,
                "parameters": parameters(grader),
                "files": digests(out / "model"),
            }
            if part is not None:
                listed |= {"part": list(part)}
            write_json(columns | listed, out / "training.json")
            meter.history.write(out / HISTORY)
            cost = meter.cost(experiment, len(parts["train"]))
            write_json(cost | {"training": sha256(out / "training.json")}, out / COST)
            run.artifact(out / "model", "model")
            run.artifact(out / "predictions.parquet")
            run.tags({"models": models_digest(out / "training.json")})


def save(grader: Grader, folder: Path, start: Start, seed: int) -> dict[str, Any]:
    """Save a trained model, replacing the folder's content; return the record of its start weights."""
    shutil.rmtree(folder, ignore_errors=True)
    grader.save(folder)
    if not isinstance(grader.params, Encoded) or not (folder / TENSORS).exists():
        return {}
    return start_record(grader.params.encoder, start.weights, seed)


def digests(model: Path) -> dict[str, str]:
    """SHA-256 of a model's files, by name."""
    return {path.name: sha256(path) for path in sorted(model.iterdir())}


def key_of(
    experiment: Experiment,
    crop: Crop,
    inputs: Inputs,
    start: Start,
    parts: Parts,
    *,
    seed: int,
    fold: int | None,
) -> str:
    """The key that identifies one training, see :func:`drgrade.resume.training_key`."""
    # other seeds, other parts and the experiment's name do not affect this training
    used = experiment.model_dump(exclude={"seeds", "out_of_fold"})
    return training_key(
        "grade",
        f"drgrade.grading.{experiment.grader}",
        {"experiment": used, "crop": crop.model_dump()},
        photographs={split: parts[split] for split in ("train", "val")},
        files=inputs.files(start),
        facts={"seed": seed, "fold": fold, "start": [start.kind, start.sha256]},
    )


def known_of(grader: Grader, inputs: Inputs) -> dict[str, Any]:
    """Inputs besides crops and grades, as far as the grader needs them: boxes, member models, feature sets.

    Raises:
        UserError: something it needs is not given.
    """
    known: dict[str, Any] = {
        "members": {name: load_model(folder / "model") for name, folder in inputs.members.items()},
        "features": {
            name: feature_sets.read_features(folder, name) for name, folder in inputs.features.items()
        },
    }
    lacking = set(grader.params.members) - set(inputs.members)
    if lacking:
        raise UserError(f"--member {min(lacking)}: not given, and the experiment builds on it")
    if "boxes" in grader.needs:
        if inputs.lesions is None:
            raise UserError(f"--lesions: the grader {grader.params.grader} needs the stage lesions")
        known["boxes"] = boxes_in_crops(inputs.data, inputs.lesions)
    return known


def masked_of(grader: Grader, inputs: Inputs) -> Photographs | None:
    """Training photographs with lesion masks; None if the grader does not need them.

    They are from the detector's training split, which the stage ``overlaps`` counts as training data.

    Raises:
        UserError: the dataset is not given, or has no such photographs.
    """
    if "masks" not in grader.needs:
        return None
    if inputs.masked is None:
        raise UserError(f"--masked: the grader {grader.params.grader} needs the stage lesion_masks")
    data = inputs.masked
    table = data.index.query("subset == 'segmentation' and split == 'train' and status == 'ok'")
    done = read_table(data.masks_folder / mask_store.TABLE, MASKS).query("status == 'ok'")["image_id"]
    table = table[table["image_id"].isin(done) & table["image_id"].isin(list(data.crops.rows))]
    if table.empty:
        raise UserError(
            f"{data.masks_folder / mask_store.TABLE}: no training photograph with masks; "
            "look at status and reason there"
        )
    table = table.assign(row=table["image_id"].map(data.crops.rows)).reset_index(drop=True)
    masks = mask_store.open_masks(data.masks_folder, table["image_id"].tolist())
    return Photographs(data.images, table, masks=masks)


def boxes_in_crops(data: CroppedDataset, lesions: Path) -> pd.DataFrame:
    """Lesions that the detector found, in crop pixels: columns of ``drgrade.schema.LESION_BOXES``.

    Lesions of photographs without a crop are left out.
    """
    found = read_table(lesions, LESION_BOXES)
    found = found[found["image_id"].isin(list(data.crops.rows))].reset_index(drop=True)
    sides = ["x1", "y1", "x2", "y2"]
    moved = data.crops.boxes_to_crops(found["image_id"], found[sides].to_numpy(float))
    return conform(found.assign(**dict(zip(sides, moved.T, strict=True))), LESION_BOXES)


def start_of(experiment: Experiment, given: Path | None, fold: int | None) -> Start:
    """The start weights of one training, with the digest of their file.

    Args:
        experiment: with or without an encoder.
        given: a weights file; the folder of a pretraining, with ``encoder.safetensors`` (or
            ``encoder_fold<k>.safetensors``); or the folder of another experiment's training of this seed
            and fold. None for ``random`` and ``imagenet``.
        fold: test fold of this training, None with a hold-out split.

    Raises:
        UserError: the weights are missing, or there are no ImageNet weights of this encoder.
    """
    if not isinstance(experiment, Encoded):
        return Start("random")
    if given is None:
        if experiment.start == "random":
            return Start("random")
        if experiment.start == "imagenet":
            return Start("imagenet", None, sha256(imagenet_file(experiment.encoder)))
        raise UserError(f"--start: not given, and the experiment starts from {experiment.start}")
    if experiment.start.startswith(EXPERIMENT):
        kind, path = "experiment", given / "model" / TENSORS
    elif given.is_dir():
        own = given / f"encoder_fold{fold}.safetensors"
        path = own if fold is not None and own.exists() else given / "encoder.safetensors"
        kind = "pretrain"
    else:
        kind, path = "file", given
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the stage that makes {experiment.start!r} first")
    return Start(kind, path, sha256(path))


def graded_external(external: CroppedDataset) -> pd.DataFrame:
    """Graded photographs of an external dataset.

    Raises:
        UserError: none of its photographs has a grade and a crop.
    """
    table = external.graded()
    if table.empty:
        raise UserError(
            f"roles.external: {external.name!r} has no graded photograph with a crop to test on; "
            "take it out, or look at status and reason in its index.parquet"
        )
    return table


def predicted(grader: Grader, photographs: Photographs, **columns: Any) -> pd.DataFrame:
    """Predict photographs; return their rows of ``predictions.parquet``, with ``columns`` added."""
    output = grader.predict(photographs)
    columns = {"dataset": photographs.dataset, **columns}
    filled: dict[str, Any] = {f"p{grade}": output.probabilities[:, grade] for grade in GRADES}
    filled |= {"score": output.score, "predicted": to_grades(output.score)}
    return photographs.table[["image_id", "patient_id", "eye", "grade"]].assign(**filled, **columns)

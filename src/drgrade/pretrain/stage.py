"""The stage ``pretrain``: train one encoder, or one encoder per fold, with one method.

With cross-validation the encoder for fold k is trained without the photographs of fold k: no grades are used
here, but pretraining on test photographs would still leak test data.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.encoders import normalisation, start_record
from drgrade.errors import UserError
from drgrade.files import atomic_write, sha256, write_json
from drgrade.grading.base import Photographs
from drgrade.grading.photographs import splits
from drgrade.images.dataset import CroppedDataset
from drgrade.images.store import Images
from drgrade.lesions.patches import COLUMNS, read_patches
from drgrade.pretrain.base import METHODS, Graded, Material, Method
from drgrade.pretrain.watch import unwatched
from drgrade.rank import rank
from drgrade.resume import training_key
from drgrade.schema import CROPS, LESION_BOXES, LESIONS, read_table, takes_part
from drgrade.tracking import track
from drgrade.training import save_tensors

log = logging.getLogger(__name__)

FINISHED = Path(".cache/drgrade/pretrain")
"""Folder that holds the finished encoders of single folds until those of all folds are finished."""


def pretrain(
    method: str,
    params: dict[str, Any],
    *,
    patch: int,
    by_fold: bool,
    data: CroppedDataset,
    patches: Path | None,
    manifest: Path,
    weights: Path,
    kinds: Path | None = None,
    name: str = "",
) -> None:
    """Train the encoder(s) of one method.

    Args:
        method: a module of :mod:`drgrade.pretrain`.
        params: the method's block of params.
        patch: side of a patch in crop pixels.
        by_fold: train one encoder for each fold of the index, without that fold, instead of a single one.
        data: dataset to train on.
        patches: ``patches.pkl``; may be None for a method that needs no boxes.
        manifest: ``encoder.json`` to write: architecture, normalisation, digests of the inputs, of the
            start weights and of the trained weights.
        weights: folder to write: ``encoder.safetensors`` or ``encoder_fold<k>.safetensors``.
        kinds: table of the boxes of ``patches`` with the type of each lesion; see :func:`kinds_of`.
        name: name of the encoder in the log and in MLflow; the method unless given.

    Raises:
        UserError: fewer than two photographs to train on; boxes or kinds are needed and not given.
    """
    name = name or method
    learner: Method = METHODS.get(method)(params)
    table = with_boxes(training_rows(data), learner, patches, kinds)
    rated = data.graded() if params.get("knn_every") else None
    start = start_record(params["encoder"], params.get("start"), params.get("seed"))
    folds = sorted(int(fold) for fold in table["fold"].dropna().unique()) if by_fold else [None]
    if rank() == 0:
        shutil.rmtree(weights, ignore_errors=True)
    inputs = {"crops": data.crops_file, "store": data.store_file, "patches": patches}
    if learner.needs_kinds:
        inputs["kinds"] = kinds
    digests = {name: sha256(path) for name, path in inputs.items() if path is not None}
    with track("pretrain", name, params | {"patch": patch}) as run:
        run.dataset("crops" if patches is None else "patches", patches or data.crops_file)
        run.params({"start_weights": start})
        finished, written = [], []
        for fold in folds:
            part = table if fold is None else table[~table["fold"].eq(fold).fillna(False)]
            label = "encoder" if fold is None else f"encoder_fold{fold}"
            material = _material(learner, data.images, part, patch, patches or data.crops_file)
            log.info("%s: %d photographs, %d lesions", label, len(part), sum(map(len, material.boxes)))
            if rated is not None:
                material = replace(
                    material, graded=watched_by(rated, data.images, fold, f"{data.index_file}: {label}")
                )
            key = training_key(
                "pretrain",
                f"drgrade.pretrain.{method}",
                unwatched(params) | {"patch": patch},
                photographs={"train": part},
                files=inputs.values(),
                facts={"fold": fold, "start": start},
            )
            finished.append(FINISHED / f"{key}.safetensors")
            written.append(weights / f"{label}.safetensors")
            if finished[-1].is_file():
                log.info("%s: was finished when the job was stopped", label)
            else:
                with run.child(f"{name} {label}", {"fold": fold, "photographs": len(part)}) as child:
                    encoder = learner.fit(material, name=f"{name} {label}", key=key, run=child)
                if rank() == 0:
                    save_tensors(encoder.state_dict(), finished[-1])
            if rank() == 0:
                with atomic_write(written[-1]) as partial:
                    shutil.copyfile(finished[-1], partial)
        if rank() == 0:  # the other processes have the same encoder
            about = {"method": method, "patch": patch, "start": start, "inputs": digests}
            write_json(described(about, params["encoder"], written), manifest)
            for path in finished:
                path.unlink(missing_ok=True)
            run.artifact(weights, "encoder")
            run.artifact(manifest)


def described(about: dict[str, Any], encoder: str, weights: list[Path]) -> dict[str, Any]:
    """Content of ``encoder.json``: ``about``, the encoder's name, normalisation and weights' digests."""
    mean, std = normalisation(encoder)
    digests = {path.name: sha256(path) for path in weights}
    return {**about, "encoder": encoder, "mean": mean, "std": std, "weights": digests}


def training_rows(data: CroppedDataset) -> pd.DataFrame:
    """Photographs that may be trained on: image_id, row, fold, in the index's order.

    Those of the training split that have a crop, graded or not; with cross-validation all, which then have a
    fold. Never photographs of the validation or test split.
    """
    table = data.index
    grading = table["subset"] == "grading"
    trained = (table["split"] == "train") | (grading & table["fold"].notna())
    table = table[takes_part(table) & trained][["image_id", "fold"]]
    cut = read_table(data.crops_file, CROPS)[["image_id", "row"]]
    table = table.merge(cut, on="image_id", validate="one_to_one")
    return table[table["row"].notna()].reset_index(drop=True)


def watched_by(table: pd.DataFrame, images: Images, fold: int | None, label: str) -> Graded | None:
    """Graded photographs for monitoring an encoder; None, with a log line, if there are too few.

    They are the training and validation photographs of a grader that starts from the encoder: for the encoder
    of fold k, fold k is the test set, the next fold is validated on, and the rest are the k-NN's neighbours.
    A single encoder for all folds is monitored like that of the first fold.

    Args:
        table: result of :meth:`drgrade.images.dataset.CroppedDataset.graded`.
        images: store that the table's rows refer to.
        fold: fold that the encoder is trained without, or None.
        label: name of the encoder in the log.
    """
    trainings = dict(splits(table, "best"))
    parts = trainings.get(fold) or next(iter(trainings.values()))
    train, val = (Photographs(images, parts[name]) for name in ("train", "val"))
    if len(train) and len(val):
        return Graded(train, val)
    log.info(
        "%s: no val_knn_qwk: %d graded photographs to train and %d to validate, and it needs both",
        label, len(train), len(val),
    )  # fmt: skip
    return None


def with_boxes(
    table: pd.DataFrame, learner: Method, patches: Path | None, kinds: Path | None
) -> pd.DataFrame:
    """``table`` with the columns boxes (float64 (k, 4)) and kinds (int64 (k,), or None).

    For a method that needs boxes only photographs with boxes are kept, for any other all of them. Boxes on
    photographs outside the table are ignored.
    """
    if patches is None and learner.needs_boxes:
        raise UserError("--patches: this method looks at lesions; name the patches.pkl to learn from")
    boxes = read_patches(patches)["train"] if patches is not None else {}
    strangers = set(boxes) - set(table["image_id"])
    if strangers:
        log.warning(
            "%s: %d photographs are not in the training split or have no crop (%s ...) and are left out",
            patches, len(strangers), min(strangers),
        )  # fmt: skip
    if learner.needs_boxes:
        table = table[table["image_id"].isin([name for name, found in boxes.items() if found])]
        table = table.reset_index(drop=True)
    found = [np.asarray(boxes.get(name, ()), np.float64).reshape(-1, 4) for name in table["image_id"]]
    table = table.assign(boxes=pd.Series(found, dtype=object), kinds=None)
    if learner.needs_kinds:
        table["kinds"] = pd.Series(kinds_of(table, patches, kinds), dtype=object)
    return table


def kinds_of(table: pd.DataFrame, patches: Path | None, kinds: Path | None) -> list[np.ndarray]:
    """Lesion type of each box: for each photograph int64 (k,), indices into ``drgrade.schema.LESIONS``.

    Args:
        table: columns image_id and boxes.
        patches: the pickle that the boxes are from; its published format does not include lesion types.
        kinds: a table that does: the same boxes in the same order, in crop pixels, with the columns of
            ``drgrade.schema.LESION_BOXES``.

    Raises:
        UserError: there is no such table, its boxes differ from the pickle's, or a lesion type is unknown.
    """
    if kinds is None:
        raise UserError(
            f"pretrain.lesion_contrastive.positives: 'lesion' needs the kind of each box, which "
            f"{patches} does not tell and no table beside it does; use 'pair'"
        )
    known = dict(list(read_table(kinds, LESION_BOXES).groupby("image_id")))
    found = []
    for image_id, boxes in zip(table["image_id"], table["boxes"], strict=True):
        part = known.get(image_id)
        if part is None or not np.array_equal(part[COLUMNS].to_numpy(np.float32), boxes.astype(np.float32)):
            raise UserError(
                f"{kinds}: other boxes on {image_id} than in {patches}; run the stage patches again"
            )
        if not part["lesion"].isin(LESIONS).all():
            raise UserError(
                f"{kinds}: a box on {image_id} is of unknown kind; pretrain.lesion_contrastive.positives: "
                f"'lesion' needs all kinds known, use 'pair'"
            )
        found.append(part["lesion"].map(LESIONS.index).to_numpy(np.int64))
    return found


def _material(learner: Method, images: Images, part: pd.DataFrame, patch: int, source: Path) -> Material:
    """The training data of one encoder.

    Raises:
        UserError: fewer than two photographs.
    """
    if len(part) < 2:
        what = "with a lesion" if learner.needs_boxes else "to train on"
        remedy = (
            "lower patches.min_score or train the detector longer"
            if learner.needs_boxes
            else "give the training split more of them"
        )
        raise UserError(f"{source}: {len(part)} photographs {what}, and learning needs two; {remedy}")
    kinds = list(part["kinds"]) if learner.needs_kinds else None
    return Material(images, part["row"].to_numpy(np.int64), list(part["boxes"]), patch, kinds)

"""The stage ``pretrain``: one method, one encoder, or one encoder a fold.

With cross-validation the photographs of fold k are kept out of the encoder that fold k starts from:
they carry no grades here, but a test photograph seen in pretraining is still a test photograph seen.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.encoders import normalisation
from drgrade.errors import UserError
from drgrade.files import sha256, write_json
from drgrade.images.store import CropStore
from drgrade.lesions.patches import read_patches
from drgrade.pretrain.base import METHODS, Material
from drgrade.schema import CROPS, INDEX, read_table
from drgrade.tracking import track
from drgrade.training import save_tensors

log = logging.getLogger(__name__)


def pretrain(
    method: str,
    params: dict[str, Any],
    *,
    patch: int,
    by_fold: bool,
    index: Path,
    crops: Path,
    store: Path,
    patches: Path,
    manifest: Path,
    weights: Path,
) -> None:
    """Train the encoder(s) of one method.

    Args:
        method: a module of :mod:`drgrade.pretrain`.
        params: its block.
        patch: side of a patch in crop pixels.
        by_fold: one encoder for each fold of the index, blind to that fold, instead of one in all.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        store: ``store.json``, its shards beside it.
        patches: ``patches.pkl``.
        manifest: ``encoder.json`` to write: architecture, normalisation, digests of inputs and weights.
        weights: folder to write: ``encoder.safetensors`` or ``encoder_fold<k>.safetensors``.

    Raises:
        UserError: fewer than two photographs have a lesion to learn from.
    """
    kind = METHODS.get(method)
    images = CropStore(store)
    table = with_patches(index, crops, patches)
    folds = sorted(int(fold) for fold in table["fold"].dropna().unique()) if by_fold else [None]
    shutil.rmtree(weights, ignore_errors=True)
    digests = {"crops": sha256(crops), "patches": sha256(patches), "store": sha256(store)}
    key = json.dumps(digests)
    with track("pretrain", method, params | {"patch": patch}) as run:
        run.dataset("patches", patches)
        for fold in folds:
            part = table if fold is None else table[~table["fold"].eq(fold).fillna(False)]
            if len(part) < 2:
                raise UserError(
                    f"{patches}: {len(part)} photographs with a lesion, and a contrast needs two; "
                    f"lower patches.min_score or train the detector longer"
                )
            label = "encoder" if fold is None else f"encoder_fold{fold}"
            material = Material(images, part["row"].to_numpy(np.int64), list(part["boxes"]), patch)
            log.info("%s: %d photographs, %d lesions", label, len(part), sum(map(len, material.boxes)))
            with run.child(f"{method} {label}", {"fold": fold, "photographs": len(part)}) as child:
                encoder = kind(params).fit(material, name=f"{method} {label}", key=key, run=child)
            save_tensors(encoder, weights / f"{label}.safetensors")
        mean, std = normalisation(params["encoder"])
        about = {
            "method": method,
            "encoder": params["encoder"],
            "mean": mean,
            "std": std,
            "patch": patch,
            "inputs": digests,
            "weights": {path.name: sha256(path) for path in sorted(weights.iterdir())},
        }
        write_json(about, manifest)
        run.artifact(weights, "encoder")
        run.artifact(manifest)


def with_patches(index: Path, crops: Path, patches: Path) -> pd.DataFrame:
    """Photographs of the pickle's training part: image_id, row, fold, boxes."""
    boxes = read_patches(patches)["train"]
    table = read_table(index, INDEX)[["image_id", "fold"]]
    table = table.merge(read_table(crops, CROPS)[["image_id", "row"]], on="image_id", validate="one_to_one")
    table = table[table["image_id"].isin(list(boxes)) & table["row"].notna()].reset_index(drop=True)
    found = [np.asarray(boxes[image_id], np.float64) for image_id in table["image_id"]]
    return table.assign(boxes=pd.Series(found, dtype=object))

"""The stage ``explain``: heat maps of one model in original pixels, scored where lesions are annotated."""

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS
from drgrade.explain.overlay import contact_sheet, overlay
from drgrade.explain.score import scores, to_original
from drgrade.files import atomic_write, write_json
from drgrade.grading.base import Explainable
from drgrade.grading.models import load_model
from drgrade.images.dataset import CroppedDataset
from drgrade.images.read import read_photograph
from drgrade.lesions.masks import read_mask
from drgrade.params import Explanation

log = logging.getLogger(__name__)

SIDE = 1024  # longest side of a written map in pixels


def explain(
    params: Explanation, *, graded: CroppedDataset, masked: CroppedDataset, model: Path, out: Path
) -> None:
    """Write ``maps/<image_id>.png`` (0-255, over the whole photograph), ``heat_maps.png``, ``scores.json``.

    Photographs with lesion masks are scored by pixel AUC and pointing game, compared with a map that depends
    only on the distance from the edge of the retina, and with a random map. Up to the same number of graded
    test photographs is shown without scores.

    Args:
        params: method, and number of photographs of each of the two groups.
        graded: dataset whose test photographs are shown.
        masked: dataset with lesion masks.
        model: folder of the model to explain, ``results/.../<experiment>/<training>/model``.
        out: folder to write to.

    Raises:
        UserError: an input is missing or damaged, or the grader has no network that the method can explain.
    """
    explained = network_of(model)
    shutil.rmtree(out / "maps", ignore_errors=True)
    (out / "maps").mkdir(parents=True)
    table, panels = {}, []
    for source, rows in (
        (masked, with_masks(masked, params.images)),
        (graded, test_rows(graded, params.images)),
    ):
        heats = maps(params.method, explained, source, rows)
        for (_, row), heat in zip(rows.iterrows(), heats, strict=True):
            panel, values = one(source, row, heat, out / "maps")
            panels.append(panel)
            if values:
                table[str(row["image_id"])] = values
    means = pd.DataFrame(list(table.values())).mean().sort_index()
    summary = {key: round(value, 6) for key, value in means.items()}
    write_json({"mean": summary, "photographs": table, "n": len(table)}, out / "scores.json")
    with atomic_write(out / "heat_maps.png") as partial:
        cv2.imwrite(str(partial), cv2.cvtColor(contact_sheet(panels, columns=4), cv2.COLOR_RGB2BGR))


def network_of(model: Path) -> Explainable:
    """Load a trained model and return its network with its preprocessing.

    Raises:
        UserError: there is no model, or its grader has no network.
    """
    grader = load_model(model)
    explained = grader.explainable()
    if explained is None:
        raise UserError(
            f"{model}: the grader {grader.params.grader!r} has no network to explain; "
            "set explanations.<name>.experiment"
        )
    return explained


def with_masks(source: CroppedDataset, images: int) -> pd.DataFrame:
    """Return up to ``images`` photographs with lesion masks: test first, then validation, then training."""
    table = source.index[(source.index["subset"] == "segmentation") & (source.index["status"] == "ok")]
    table = table[table["image_id"].isin(list(source.crops.rows))]
    first = table["split"].map({"test": 0, "val": 1, "train": 2})
    return table.assign(first=first).sort_values(["first", "image_id"]).head(images)


def test_rows(source: CroppedDataset, images: int) -> pd.DataFrame:
    """Return up to ``images`` graded test photographs (with folds: of fold 0), alternating over the grades.

    Higher grades come first.
    """
    table = source.index[(source.index["subset"] == "grading") & (source.index["status"] == "ok")]
    table = table[table["image_id"].isin(list(source.crops.rows))]
    table = table[table["fold"].eq(0).fillna(False) | (table["split"] == "test")].sort_values("image_id")
    turn = table.groupby("grade").cumcount()
    return table.assign(turn=turn).sort_values(["turn", "grade"], ascending=[True, False]).head(images)


def maps(method: str, explained: Explainable, source: CroppedDataset, rows: pd.DataFrame) -> np.ndarray:
    """Return heat maps (n, S, S), 0-1, over the crops of ``rows``; S is the network's input size."""
    import torch

    from drgrade.device import device
    from drgrade.training import pictures

    if rows.empty:
        return np.empty((0, 1, 1), np.float32)
    places = np.array([source.crops.rows[image_id] for image_id in rows["image_id"]])
    batch = pictures(explained.preprocess.scaled(source.images), places)
    network = explained.network.to(device()).eval()
    heat = EXPLAINERS.get(method)().heat(network, explained.preprocess.normalised(batch.to(device())))
    return heat.cpu().numpy() if isinstance(heat, torch.Tensor) else heat


def one(
    source: CroppedDataset, row: pd.Series, heat: np.ndarray, folder: Path
) -> tuple[np.ndarray, dict[str, float]]:
    """Write a photograph's heat map; return its overlay (uint8 RGB) and, if it has masks, its scores.

    Args:
        source: dataset of the photograph.
        row: row of the index.
        heat: heat map of the crop (S, S), 0-1.
        folder: where to write the map of the whole photograph, its longer side at most :data:`SIDE` pixels.
    """
    image_id = str(row["image_id"])
    root = raw_root(source.name)
    photograph = read_photograph(root / str(row["path"]))
    height, width = photograph.shape[:2]
    spread = to_original(heat, source.crops.geometry(image_id), width, height)
    scale = min(1.0, SIDE / max(width, height))
    small = cv2.resize(spread, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / f"{image_id}.png"), np.round(small * 255).astype(np.uint8))
    masks = DATASETS.get(source.name)().masks(root, image_id)
    if row["subset"] != "segmentation" or not masks:
        return overlay(photograph, spread), {}
    lesion = np.any([read_mask(path) for path in masks.values()], axis=0)
    return overlay(photograph, spread, lesion), scores(spread, lesion, photograph.max(axis=2) > 20)

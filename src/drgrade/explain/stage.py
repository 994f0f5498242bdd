"""The stage ``explain``: heat maps of one model, in original pixels, scored where lesions are known."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.encoders import normalisation
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS
from drgrade.explain.overlay import contact_sheet, overlay
from drgrade.explain.score import scores, to_original
from drgrade.files import whole, write_json
from drgrade.grading.base import GRADERS
from drgrade.images.read import read_photograph
from drgrade.images.scaled import at_size
from drgrade.images.store import Crops
from drgrade.lesions.masks import read_mask
from drgrade.params import Explain
from drgrade.schema import INDEX, read_table

log = logging.getLogger(__name__)

SIDE = 1024  # longest side of a written map in pixels


@dataclass(frozen=True)
class Source:
    """One dataset's crops: what the explainer needs to find its photographs again."""

    dataset: str
    table: pd.DataFrame
    crops: Crops

    @classmethod
    def open(cls, dataset: str, index: Path, crops: Path, store: Path) -> "Source":
        """From ``index.parquet``, ``crops.parquet`` and ``store.json``."""
        return cls(dataset, read_table(index, INDEX), Crops(store, crops))


def explain(
    params: Explain,
    *,
    lesions_dataset: str,
    lesions_index: Path,
    lesions_crops: Path,
    lesions_store: Path,
    dataset: str,
    index: Path,
    crops: Path,
    store: Path,
    models: Path,
    out: Path,
) -> None:
    """Write ``maps/<image_id>.png`` (0-255 in the photograph's frame), ``heat_maps.png``, ``scores.json``.

    Photographs with lesion masks are scored: pixel AUC and pointing game, beside the same scores of a map
    that knows only where the retina is, and of a random one. As many graded test photographs are shown.

    Args:
        params: method, experiment, and how many photographs of each kind.
        lesions_dataset: with masks; its index, crops and store are the three that follow.
        lesions_index: ``index.parquet``.
        lesions_crops: ``crops.parquet``.
        lesions_store: ``store.json``.
        dataset: whose graded photographs are shown; its index, crops and store follow.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        store: ``store.json``.
        models: of one experiment, a folder for each seed and fold.
        out: folder to write to.

    Raises:
        UserError: an input is missing or damaged, or the grader has no network that the method can explain.
    """
    model = first_model(models)
    masked = Source.open(lesions_dataset, lesions_index, lesions_crops, lesions_store)
    graded = Source.open(dataset, index, crops, store)
    shutil.rmtree(out / "maps", ignore_errors=True)
    (out / "maps").mkdir(parents=True)
    table, panels = {}, []
    for source, rows in (
        (masked, with_masks(masked, params.images)),
        (graded, test_rows(graded, params.images)),
    ):
        heats = maps(params.method, model, source, rows)
        for (_, row), heat in zip(rows.iterrows(), heats, strict=True):
            panel, values = one(source, row, heat, out / "maps")
            panels.append(panel)
            if values:
                table[str(row["image_id"])] = values
    means = pd.DataFrame(list(table.values())).mean().sort_index()
    summary = {key: round(value, 6) for key, value in means.items()}
    write_json({"mean": summary, "photographs": table, "n": len(table)}, out / "scores.json")
    with whole(out / "heat_maps.png") as partial:
        cv2.imwrite(str(partial), cv2.cvtColor(contact_sheet(panels, columns=4), cv2.COLOR_RGB2BGR))


def first_model(models: Path) -> Any:
    """The trained grader of the first seed (and fold), with its ``network``.

    Raises:
        UserError: there is no model, or it has no network.
    """
    folders = sorted(path.parent for path in models.glob("*/model.json"))
    if not folders:
        raise UserError(f"{models}: holds no model; run the stage grade first")
    about = json.loads((folders[0] / "model.json").read_text())
    grader = GRADERS.get(about["grader"]).load(folders[0])
    if not hasattr(grader, "network"):
        raise UserError(
            f"{models}: the grader {about['grader']!r} has no network to explain; set explain.experiment"
        )
    return grader


def with_masks(source: Source, images: int) -> pd.DataFrame:
    """Photographs with lesion masks, those the detector did not learn from first."""
    table = source.table[(source.table["subset"] == "segmentation") & (source.table["status"] == "ok")]
    table = table[table["image_id"].isin(list(source.crops.rows))]
    first = table["split"].map({"test": 0, "val": 1, "train": 2})
    return table.assign(first=first).sort_values(["first", "image_id"]).head(images)


def test_rows(source: Source, images: int) -> pd.DataFrame:
    """Graded test photographs (with folds: of the first fold), spread over the grades, the worst first."""
    table = source.table[(source.table["subset"] == "grading") & (source.table["status"] == "ok")]
    table = table[table["image_id"].isin(list(source.crops.rows))]
    table = table[table["fold"].eq(0).fillna(False) | (table["split"] == "test")].sort_values("image_id")
    turn = table.groupby("grade").cumcount()
    return table.assign(turn=turn).sort_values(["turn", "grade"], ascending=[True, False]).head(images)


def maps(method: str, grader: Any, source: Source, rows: pd.DataFrame) -> np.ndarray:
    """Heat maps (n, S, S) in 0-1 over the crops, at the network's input size."""
    import torch

    from drgrade.images.augment import normalise
    from drgrade.training import device, pictures

    if rows.empty:
        return np.empty((0, 1, 1), np.float32)
    size = grader.settings["input_size"]
    places = np.array([source.crops.rows[image_id] for image_id in rows["image_id"]])
    batch = pictures(at_size(source.crops.pictures, size), places).float() / 255
    batch = normalise(batch, *normalisation(grader.encoder))
    network = grader.network.to(device()).eval()
    heat = EXPLAINERS.get(method)().heat(network, batch)
    return heat.cpu().numpy() if isinstance(heat, torch.Tensor) else heat


def one(
    source: Source, row: pd.Series, heat: np.ndarray, folder: Path
) -> tuple[np.ndarray, dict[str, float]]:
    """Write a photograph's map; its panel for the sheet, uint8 RGB, and scores where it has masks.

    Args:
        source: where ``row`` is from.
        row: of the index.
        heat: over the crop (S, S), 0-1.
        folder: for the map, in the photograph's frame, no side longer than :data:`SIDE`.
    """
    image_id = str(row["image_id"])
    root = raw_root(source.dataset)
    photograph = read_photograph(root / str(row["path"]))
    height, width = photograph.shape[:2]
    spread = to_original(heat, source.crops.geometry(image_id), width, height)
    scale = min(1.0, SIDE / max(width, height))
    small = cv2.resize(spread, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / f"{image_id}.png"), np.round(small * 255).astype(np.uint8))
    masks = DATASETS.get(source.dataset)().masks(root, image_id)
    if row["subset"] != "segmentation" or not masks:
        return overlay(photograph, spread), {}
    lesion = np.any([read_mask(path) for path in masks.values()], axis=0)
    return overlay(photograph, spread, lesion), scores(spread, lesion, photograph.max(axis=2) > 20)

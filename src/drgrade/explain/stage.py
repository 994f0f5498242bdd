"""The stage ``explain``: heat maps of one or more models in original pixels, scored against lesion masks."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Explainer, Heat, InGrades, over_input, to_heat
from drgrade.explain.overlay import contact_sheet, legend, overlay, shrunk
from drgrade.explain.score import Mask, scores, to_original
from drgrade.files import atomic_write, write_json
from drgrade.grading.base import Explainable
from drgrade.grading.models import load_model
from drgrade.images.dataset import CroppedDataset
from drgrade.images.read import read_photograph
from drgrade.images.rules import RGBImage
from drgrade.lesions.masks import read_mask
from drgrade.params import Explanation
from drgrade.schema import GRADES

log = logging.getLogger(__name__)

SIDE = 1024  # longest side of a written map in pixels
REFERABLE = 2 / GRADES[-1]
"""Heat of grade 2, from which on a patient is referred, on the common scale."""


def explain(
    params: Explanation,
    *,
    graded: CroppedDataset,
    masked: CroppedDataset,
    models: Sequence[Path],
    out: Path,
) -> None:
    """Write ``maps/<image_id>.png`` (0-255, over the whole photograph), ``heat_maps.png``, ``scores.json``.

    Photographs with lesion masks are scored by pixel AUC, pointing game and share of the heat on lesions,
    compared with a map that depends only on the distance from the edge of the retina, and with a random map
    (see :func:`.score.scores`). Up to the same number of graded test photographs is shown without scores.

    A method with a unit (``ram``, unless ``params.scale`` is ``each``) also writes ``maps/<image_id>.npy``,
    float32 in grade units; ``heat_maps.png`` then has a legend, shows each photograph beside its map, and
    draws a line around regions of grade 2 and above. Maps are 0 where no network looks: outside the crop, and
    in the margin that an encoder cuts off.

    Args:
        params: method, and number of photographs of each of the two groups.
        graded: dataset whose test photographs are shown.
        masked: dataset with lesion masks.
        models: folders of the models to explain, ``results/.../<experiment>/<training>/model``. The maps of
            several are averaged in original pixels.
        out: folder to write to.

    Raises:
        UserError: an input is missing or damaged, or a grader has no network that the method can explain.
    """
    explainer: Explainer = EXPLAINERS.get(params.method)()
    networks = [network_of(model) for model in models]
    in_grades = isinstance(explainer, InGrades) and params.scale == "common"
    shutil.rmtree(out / "maps", ignore_errors=True)
    (out / "maps").mkdir(parents=True)
    table, panels = {}, []
    for source, rows in (
        (masked, with_masks(masked, params.images)),
        (graded, test_rows(graded, params.images)),
    ):
        found = [maps(explainer, network, source, rows, params.scale) for network in networks]
        for (_, row), *crops in zip(rows.iterrows(), *found, strict=True):
            drawn, values = one(source, row, crops, out / "maps", in_grades=in_grades)
            panels += drawn
            if values:
                table[str(row["image_id"])] = values
    means = pd.DataFrame(list(table.values())).mean().sort_index()
    summary = {key: round(value, 6) for key, value in means.items()}
    write_json({"mean": summary, "photographs": table, "n": len(table)}, out / "scores.json")
    sheet = contact_sheet([*panels, legend(GRADES[-1], REFERABLE)] if in_grades else panels, columns=4)
    with atomic_write(out / "heat_maps.png") as partial:
        cv2.imwrite(str(partial), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


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


def maps(
    explainer: Explainer, explained: Explainable, source: CroppedDataset, rows: pd.DataFrame, scale: str
) -> Heat:
    """Return maps (n, S, S) over the crops of ``rows``.

    S is the network's input size, with ``lesion_maps`` the side of its lesion maps.

    Args:
        explainer: the method.
        explained: network and preprocessing.
        source: dataset of the photographs.
        rows: rows of its index.
        scale: as in ``explanations.<name>.scale``.

    Returns:
        float32; in grade units if the method has a unit and the scale is ``common``, otherwise heat, 0-1.
    """
    from drgrade.device import device
    from drgrade.training import pictures

    if rows.empty:
        return np.empty((0, 1, 1), np.float32)
    places = np.array([source.crops.rows[image_id] for image_id in rows["image_id"]])
    batch = pictures(explained.preprocess.scaled(source.images), places)
    network = explained.network.to(device()).eval()
    inputs = explained.preprocess.normalised(batch.to(device()))
    if not isinstance(explainer, InGrades):
        return explainer.heat(network, inputs)
    values = explainer.values(network, inputs)
    return over_input(stretched(values) if scale == "each" else values, network, inputs.shape[-1])


def stretched(values: Heat) -> Heat:
    """Scale each of the maps (n, h, w) to 0-1 on its own; a constant map becomes 0."""
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return (values - low) / np.maximum(high - low, np.finfo(np.float32).tiny)


def one(
    source: CroppedDataset, row: pd.Series, crops: Sequence[Heat], folder: Path, *, in_grades: bool
) -> tuple[list[RGBImage], dict[str, float]]:
    """Write a photograph's map; return its panels of the contact sheet and, if it has masks, its scores.

    Args:
        source: dataset of the photograph.
        row: row of the index.
        crops: maps of its crop, (S, S), of one or more networks; S may differ.
        folder: where to write the mean map of the whole photograph.
        in_grades: whether the maps are in grade units, otherwise 0-1.
    """
    image_id = str(row["image_id"])
    root = raw_root(source.name)
    photograph = read_photograph(root / str(row["path"]))
    height, width = photograph.shape[:2]
    geometry = source.crops.geometry(image_id)
    spread = np.mean([to_original(crop, geometry, width, height) for crop in crops], axis=0)
    write_map(spread, folder / image_id, in_grades=in_grades)
    masks = DATASETS.get(source.name)().masks(root, image_id)
    lesion: Mask | None = None
    values: dict[str, float] = {}
    if row["subset"] == "segmentation" and masks:
        lesion = np.any([read_mask(path) for path in masks.values()], axis=0)
        values = scores(spread, lesion, photograph.max(axis=2) > 20)
    if in_grades:
        drawing = overlay(photograph, to_heat(spread), lesion, level=REFERABLE)
        return [shrunk(photograph), drawing], values
    return [overlay(photograph, spread, lesion)], values


def write_map(spread: Heat, stem: Path, *, in_grades: bool) -> None:
    """Write a map of a photograph (H, W), its longer side at most :data:`SIDE` pixels.

    Args:
        spread: in grade units, or heat.
        stem: path without suffix: ``.png`` holds the heat, 0-255; ``.npy`` the values in grade units.
        in_grades: whether ``spread`` is in grade units.
    """
    scale = min(1.0, SIDE / max(spread.shape))
    small = cv2.resize(spread, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    if in_grades:
        np.save(f"{stem}.npy", small)
    heat = to_heat(small) if in_grades else small
    cv2.imwrite(f"{stem}.png", np.round(heat * 255).astype(np.uint8))

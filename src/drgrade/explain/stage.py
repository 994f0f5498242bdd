"""The stage ``explain``: heat maps in original pixels, and scores of them."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Heat, InGrades, LesionResults, to_heat
from drgrade.explain.maps import Explained, of_lesions, of_networks
from drgrade.explain.overlay import contact_sheet, legend, overlay, shrunk
from drgrade.explain.photographs import test_rows, with_masks
from drgrade.explain.score import scores
from drgrade.files import atomic_write, write_file, write_json
from drgrade.grading.base import Explainable
from drgrade.grading.models import load_model
from drgrade.images.dataset import CroppedDataset
from drgrade.images.rules import RGBImage
from drgrade.params import Explanation
from drgrade.schema import GRADES

SIDE = 1024
"""Longest side of a written map in pixels."""
PANEL = 480
"""Width in pixels of the maps of all attention heads on the sheet."""
REFERABLE = 2 / GRADES[-1]
"""Heat of grade 2, from which on a patient is referred, on the common scale."""


def explain(
    params: Explanation,
    *,
    graded: CroppedDataset,
    masked: CroppedDataset,
    models: Sequence[Path] = (),
    boxes: Mapping[str, Path] | None = None,
    segmentation: Path | None = None,
    out: Path,
) -> None:
    """Write ``maps/``, ``heat_maps.png`` and ``scores.json``: maps of photographs with masks, and of graded
    test photographs.

    - ``maps/<image_id>.png``: the heat, 0-255, over the whole photograph; ``.npy``: the same as float16, 0-1.
      A method with a unit (``ram``, unless ``params.scale`` is ``each``) writes float32 in grade units. Maps
      are 0 where no network looks: outside the crop, and in the margin that an encoder cuts off.
    - ``maps/<image_id>_head<k>.png``: the heat of an attention head, k from 0, with ``attention`` only.
    - ``heat_maps.png``: the maps over their photographs. With a unit it has a legend, shows each photograph
      beside its map, and draws a line around regions of grade 2 and above.
    - ``scores.json``: of photographs with masks, how well the map locates lesions (:func:`.score.scores`); of
      ``params.faithfulness`` photographs, of the test split first, insertion and deletion
      (:mod:`.faithfulness`), if a network is explained. ``n`` and ``n_faithfulness`` count them.

    Args:
        params: method, and number of photographs of each of the two groups.
        graded: dataset whose test photographs are shown.
        masked: dataset with lesion masks.
        models: folders of the models to explain, ``results/.../<experiment>/<training>/model``. The maps of
            several are averaged in original pixels.
        boxes: for ``lesion_boxes``: folders with the detections, see :class:`.LesionResults`.
        segmentation: for ``segmentation``: folder of the trained networks.
        out: folder to write to.

    Raises:
        UserError: an input is missing or damaged, or a grader has no network that the method can explain.
    """
    method: Any = EXPLAINERS.get(params.method)
    if params.needs == "networks":
        if not models:
            raise UserError(f"--model: needed by the method {params.method}; give the folder of a model")
        explainer = method()
        draw = partial(of_networks, explainer, [network_of(model) for model in models], params.scale)
        known = [set(source.crops.rows) for source in (masked, graded)]
    else:
        explainer = method(LesionResults(masked, boxes or {}, segmentation))
        draw = partial(of_lesions, explainer)
        known = [explainer.explains(source) for source in (masked, graded)]
    lesions = with_masks(masked, known[0], params.images)
    test = test_rows(graded, known[1], params.images)
    explained = (one for group in ((masked, lesions), (graded, test)) for one in draw(*group))
    measured = test_split_first(lesions, test)[: params.faithfulness]
    in_grades = isinstance(explainer, InGrades) and params.scale == "common"
    write(explained, measured, out, in_grades=in_grades)


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


def test_split_first(lesions: pd.DataFrame, test: pd.DataFrame) -> list[str]:
    """Return the image ids of photographs with masks and of graded test photographs, test split first."""
    in_test = lesions["split"].eq("test").fillna(False).astype(bool)
    parts = (lesions[in_test], test, lesions[~in_test])
    return [str(image_id) for part in parts for image_id in part["image_id"]]


def write(explained: Iterable[Explained], measured: Sequence[str], out: Path, *, in_grades: bool) -> None:
    """Write the output of the stage, one photograph at a time.

    Args:
        explained: photographs with their maps.
        measured: image ids of those whose insertion and deletion are measured.
        out: folder to write to.
        in_grades: whether the maps are in grade units, otherwise 0-1.
    """
    shutil.rmtree(out / "maps", ignore_errors=True)
    (out / "maps").mkdir(parents=True)
    table: dict[str, dict[str, float]] = {}
    panels: list[RGBImage] = []
    for one in explained:
        photograph = one.photograph
        panels += write_maps(one, out / "maps" / photograph.image_id, in_grades=in_grades)
        values = {} if photograph.lesion is None else scores(one.heat, photograph.lesion, photograph.field)
        if photograph.image_id in measured:
            values |= one.faithfulness()
        if values:
            table[photograph.image_id] = values
    means = pd.DataFrame(list(table.values())).mean().sort_index()
    summary = {
        "mean": {key: round(value, 6) for key, value in means.items()},
        "photographs": table,
        "n": sum("auc" in values for values in table.values()),
        "n_faithfulness": sum("insertion" in values for values in table.values()),
    }
    write_json(summary, out / "scores.json")
    sheet = contact_sheet([*panels, legend(GRADES[-1], REFERABLE)] if in_grades else panels, columns=4)
    with atomic_write(out / "heat_maps.png") as partial_file:
        partial_file.write_bytes(_png(cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)))


def write_maps(explained: Explained, stem: Path, *, in_grades: bool) -> list[RGBImage]:
    """Write the maps of a photograph; return its panels of the contact sheet.

    Args:
        explained: the photograph with its map.
        stem: path of the maps without suffix.
        in_grades: whether the map is in grade units, otherwise 0-1.
    """
    photograph, heat = explained.photograph, explained.heat
    values = small(heat)
    with atomic_write(Path(f"{stem}.npy")) as partial_file:
        np.save(partial_file, values if in_grades else values.astype(np.float16))
    write_heat(to_heat(values) if in_grades else values, Path(f"{stem}.png"))
    if in_grades:
        drawing = overlay(photograph.image, to_heat(heat), photograph.lesion, level=REFERABLE)
        return [shrunk(photograph.image), drawing]
    heads = []
    for number, head in enumerate(explained.heads):
        write_heat(small(head), Path(f"{stem}_head{number}.png"))
        heads.append(overlay(photograph.image, head, photograph.lesion, side=PANEL))
    columns = max(ceil(sqrt(len(heads))), 1)
    small_panels = [contact_sheet(heads, columns, cell=PANEL // columns, gap=4)] if heads else []
    return [overlay(photograph.image, heat, photograph.lesion), *small_panels]


def small(spread: Heat) -> Heat:
    """Scale a map of a photograph (H, W) down, if necessary, to :data:`SIDE` pixels on its longer side."""
    scale = min(1.0, SIDE / max(spread.shape))
    return cv2.resize(spread, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)


def write_heat(heat: Heat, path: Path) -> None:
    """Write heat (h, w), 0-1, as a grey image, 0-255."""
    write_file(path, _png(np.round(heat * 255).astype(np.uint8)))


def _png(image: npt.NDArray[Any]) -> bytes:
    """Encode an image, uint8 (BGR or grey); OpenCV's own writing of files hides a full disk."""
    return cv2.imencode(".png", image)[1].tobytes()

"""Measure the segmentation on whole photographs it was not trained on: ``drgrade segmentation_metrics``.

Thresholds are chosen on the validation photographs and applied to the test photographs, for each part
(trained network) on its own. All metrics are of original pixels of the whole photograph; pixels outside the
crop box have probability 0.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from drgrade.background import read_ahead
from drgrade.data.registry import raw_root
from drgrade.errors import UserError
from drgrade.files import atomic_write, write_json
from drgrade.images.read import ReadError, read_photograph
from drgrade.images.rules import Box, RGBImage
from drgrade.lesions.masks import read_mask
from drgrade.params import Segmentation, SegmentationMetrics
from drgrade.schema import CROPS, INDEX, read_table
from drgrade.segmentation.metrics import (
    LEVELS,
    NO_LEVEL,
    Ints,
    Pixels,
    best_level,
    count,
    segmentation_metrics,
    statistics,
    threshold_of,
    written,
)

if TYPE_CHECKING:
    from drgrade.segmentation.network import SegmentationNetwork
    from drgrade.segmentation.sheet import Example

log = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
Levels = Mapping[tuple[str, str], int]
"""Level of the threshold of each part and kind of lesion."""


def measure_segmentation(
    dataset: str, index: Path, crops: Path, models: Path, params: SegmentationMetrics, out: Path
) -> None:
    """Predict the validation and test photographs of each part, and compute the metrics of the pixels.

    Writes into ``out``:

    - ``metrics.json``: ``parts``, ``val`` and ``test`` (null without test photographs), the results of
      :func:`.metrics.segmentation_metrics` pooled over the parts; each kind also has ``thresholds`` by part.
    - ``photographs.csv``: a row for each photograph and annotated kind, with its AUPR, Dice and IoU, number
      of lesion pixels, and ``status``: ok or unreadable, with the reason.
    - ``maps/<image_id>.npz`` of the test photographs (of the validation photographs if there are none for
      testing), with the arrays ``probability``, uint8 (K, h, w), 255 being 1, of the scaled crop box;
      ``kinds`` (K,); ``box``, (x0, y0, x1, y1), the crop box in original pixels, clipped to the photograph.
    - ``overlays.png``: those of the same photographs that have the most lesions.

    Args:
        dataset: name of a dataset with masks.
        index: ``index.parquet``.
        crops: ``crops.parquet``.
        models: folder of the trained networks, ``<part>/model``.
        params: resamples for the intervals, and number of photographs on the sheet.
        out: folder to write to.

    Raises:
        UserError: a network is missing, or no validation photograph with masks can be read.
    """
    from drgrade.memory import keep_memory

    networks = load_networks(models)
    settings = next(iter(networks.values())).params
    photographs = _photographs(dataset, index, crops, settings)
    shown = "test" if "test" in {photograph.split for photograph in photographs} else "val"
    shutil.rmtree(out / "maps", ignore_errors=True)
    keep_memory()
    measured: list[Measured] = []
    for part, network in networks.items():
        own = [photograph for photograph in photographs if photograph.part == part]
        measured += _measure(network, own, out / "maps", shown)
        log.info("%s: %d photographs predicted", part, len(own))
    if not any(one.counts for one in measured if one.photograph.split == "val"):
        raise UserError(_none_readable(index, measured))
    kinds = next(iter(networks.values())).kinds
    levels = _thresholds(measured, kinds)
    metrics: dict[str, Any] = {"parts": list(networks), "test": None}
    for split in ("val", "test"):
        some = [one for one in measured if one.counts and one.photograph.split == split]
        if some:
            metrics[split] = _metrics(some, kinds, levels, params.bootstrap)
    write_json(metrics, out / "metrics.json")
    with atomic_write(out / "photographs.csv") as partial:
        _table(measured, kinds, levels).to_csv(partial, index=False)
    _draw(measured, levels, shown, params.examples, out)
    split = "test" if metrics["test"] else "val"
    log.info("mean AUPR %.3f on the %s photographs", metrics[split]["mean"]["aupr"] or 0, split)


@dataclass(frozen=True)
class Photograph:
    """A photograph to measure.

    Attributes:
        part: whose network predicts it.
        split: val or test.
        image_id: of the photograph.
        patient: its patient, or its image_id if unknown.
        path: the image file.
        masks: mask file by annotated kind.
        box: crop box in original pixels.
    """

    part: str
    split: str
    image_id: str
    patient: str
    path: Path
    masks: Mapping[str, Path]
    box: Box


@dataclass(frozen=True)
class Opened:
    """A photograph with its pixels (None if unreadable), its readable masks, and reasons for the others."""

    photograph: Photograph
    image: RGBImage | None
    masks: Mapping[str, Mask]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """A photograph's pixel counts by kind (see :func:`.metrics.count`), and reasons for the missing kinds.

    ``lesions`` is the number of its lesions of all kinds: 8-connected regions of the masks.
    """

    photograph: Photograph
    counts: Mapping[str, tuple[Ints, Ints]]
    reasons: Mapping[str, str]
    lesions: int = 0


def load_networks(models: Path) -> dict[str, "SegmentationNetwork"]:
    """Load the trained network of each part, ``<models>/<part>/model``, by part.

    Raises:
        UserError: the folders are not the parts that the networks were trained for.
    """
    from drgrade.device import device
    from drgrade.segmentation.network import SegmentationNetwork
    from drgrade.segmentation.parts import part_names

    folders = sorted(models.glob("*/model"))
    if not folders:
        raise UserError(f"{models}: no trained network; run the stage segmentation first")
    found = {folder.parent.name: SegmentationNetwork.load(folder, device()) for folder in folders}
    names = part_names(next(iter(found.values())).params)
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{models / missing[0] / 'model'}: no trained network; run the stage segmentation")
    if others := sorted(set(found) - set(names)):
        raise UserError(f"{models / others[0]}: of a training with other folds; delete this folder")
    return {name: found[name] for name in names}


def _photographs(dataset: str, index: Path, crops: Path, settings: Segmentation) -> list[Photograph]:
    """Validation and test photographs with a crop and a mask, by part, sorted by image_id."""
    from drgrade.segmentation.parts import parts
    from drgrade.segmentation.regions import mask_files

    table, root = read_table(index, INDEX), raw_root(dataset)
    boxes = read_table(crops, CROPS).query("status == 'ok'")[["image_id", "x0", "y0", "x1", "y1"]]
    rows = table[["image_id", "path", "patient_id"]].merge(boxes, on="image_id")
    rows["patient_id"] = rows["patient_id"].fillna(rows["image_id"])
    files = mask_files(dataset, rows["image_id"].tolist(), settings)
    found = []
    for part, split in parts(table, settings).items():
        held_out = rows.assign(split=rows["image_id"].map(split)).query("split in ('val', 'test')")
        for image_id, path, patient, *edges, where in held_out.sort_values("image_id").to_numpy().tolist():
            if masks := files[image_id]:
                x0, y0, x1, y1 = map(int, edges)
                found.append(Photograph(part, where, image_id, patient, root / path, masks, (x0, y0, x1, y1)))
    if not found:
        raise UserError(f"{index}: no photograph of {dataset!r} with masks in the splits val or test")
    return found


def _measure(
    network: "SegmentationNetwork", photographs: Sequence[Photograph], maps: Path, shown: str
) -> Iterator[Measured]:
    """Read, predict and count the photographs of a part; write the maps of those of the split ``shown``.

    Reading and counting run in the background. At most two photographs are read and two counted at a time, so
    memory does not depend on their number.
    """
    from drgrade.segmentation.predict import probabilities

    def predicted() -> Iterator[tuple[Opened, npt.NDArray[np.float32] | None]]:
        for opened in read_ahead(_open, photographs, depth=1):
            if opened.image is None or not opened.masks:
                yield opened, None
                continue
            found = probabilities(network, opened.image, opened.photograph.box)
            if not np.isfinite(found).all():
                raise UserError(
                    f"{opened.photograph.part}: the network's output for {opened.photograph.image_id} is not "
                    "finite; train it again with a lower segmentation.lr"
                )
            yield opened, found

    def finished(made: tuple[Opened, npt.NDArray[np.float32] | None]) -> Measured:
        opened, found = made
        if found is None or opened.image is None:
            return Measured(opened.photograph, {}, opened.reasons)
        if opened.photograph.split == shown:
            _write_maps(found, network.kinds, opened, maps / f"{opened.photograph.image_id}.npz")
        return _counted(opened, found, network.kinds)

    yield from read_ahead(finished, predicted(), depth=2)


def _open(photograph: Photograph) -> Opened:
    """Read a photograph and its masks; what cannot be read is left out, with a reason for each kind."""
    try:
        image = read_photograph(photograph.path)
    except ReadError as error:
        log.warning("%s: skipped, %s", photograph.image_id, error)
        return Opened(photograph, None, {}, dict.fromkeys(photograph.masks, str(error)))
    masks, reasons = {}, {}
    for kind, path in photograph.masks.items():
        try:
            mask = read_mask(path)
            if mask.shape != image.shape[:2]:
                sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[:2])]
                raise UserError(f"{path}: {sizes[0]} pixels, but the photograph has {sizes[1]}")
            masks[kind] = mask
        except UserError as error:
            log.warning("%s: no %s, %s", photograph.image_id, kind, error)
            reasons[kind] = str(error)
    return Opened(photograph, image, masks, reasons)


def _counted(opened: Opened, found: npt.NDArray[np.float32], kinds: Sequence[str]) -> Measured:
    """Count the pixels of the kinds that have a mask, one kind at a time to save memory."""
    from drgrade.segmentation.predict import to_photograph

    counts, lesions = {}, 0
    for kind, values in zip(kinds, found, strict=True):
        if kind in opened.masks:
            mask = opened.masks[kind]
            (spread,) = to_photograph(values[None], opened.photograph.box, mask.shape)
            counts[kind] = count(spread, mask)
            lesions += cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    return Measured(opened.photograph, counts, opened.reasons, lesions)


def _write_maps(found: npt.NDArray[np.float32], kinds: Sequence[str], opened: Opened, path: Path) -> None:
    from drgrade.segmentation.predict import clipped

    assert opened.image is not None
    bytes_ = (found * 255 + 0.5).astype(np.uint8)
    box = clipped(opened.photograph.box, opened.image.shape)
    with atomic_write(path) as partial:
        np.savez_compressed(partial, probability=bytes_, kinds=np.array(kinds), box=np.array(box))


def _pixels(measured: Sequence[Measured], kind: str) -> Pixels:
    """Stack the counts of one kind; zeros for photographs in which it was not annotated or not readable."""
    none = (np.zeros(LEVELS, np.int64),) * 2
    lesion, other = zip(*(one.counts.get(kind, none) for one in measured), strict=True)
    return Pixels(np.stack(lesion), np.stack(other))


def _thresholds(measured: Sequence[Measured], kinds: Sequence[str]) -> Levels:
    """Choose the level with the best Dice on the validation photographs, for each part and kind."""
    chosen: dict[tuple[str, str], int] = {}
    for part in dict.fromkeys(one.photograph.part for one in measured):
        val = [one for one in measured if (one.photograph.part, one.photograph.split) == (part, "val")]
        chosen |= {(part, kind): best_level(_pixels(val, kind)) if val else NO_LEVEL for kind in kinds}
    return chosen


def _levels_of(measured: Sequence[Measured], kind: str, levels: Levels) -> Ints:
    return np.array([levels[one.photograph.part, kind] for one in measured], np.int64)


def _metrics(
    measured: Sequence[Measured], kinds: Sequence[str], levels: Levels, resamples: int
) -> dict[str, Any]:
    found = segmentation_metrics(
        {kind: _pixels(measured, kind) for kind in kinds},
        {kind: _levels_of(measured, kind, levels) for kind in kinds},
        [one.photograph.patient for one in measured],
        resamples,
    )
    for kind in kinds:
        found[kind]["thresholds"] = {
            part: threshold_of(level) for (part, own), level in levels.items() if own == kind
        }
    return found


def _table(measured: Sequence[Measured], kinds: Sequence[str], levels: Levels) -> pd.DataFrame:
    """Return the rows of ``photographs.csv``: one for each photograph and annotated kind."""
    rows = []
    for one in measured:
        known = {
            "part": one.photograph.part,
            "split": one.photograph.split,
            "image_id": one.photograph.image_id,
        }
        for kind in (kind for kind in kinds if kind in one.photograph.masks):
            row: dict[str, Any] = {**known, "kind": kind, "status": "unreadable"}
            if kind in one.counts:
                pixels = _pixels([one], kind)
                values = statistics(pixels, _levels_of([one], kind, levels), np.ones((1, 1)))
                row |= {name: written(values[name][0]) for name in ("aupr", "dice", "iou")}
                row |= {"lesion_pixels": int(pixels.lesion.sum()), "status": "ok"}
            rows.append(row | {"reason": one.reasons.get(kind, "")})
    columns = [*known, "kind", "aupr", "dice", "iou", "lesion_pixels", "status", "reason"]
    return pd.DataFrame(rows, columns=columns).astype({"lesion_pixels": "Int64"})


def _draw(measured: Sequence[Measured], levels: Levels, shown: str, examples: int, out: Path) -> None:
    """Draw the photographs with the most lesions, from the maps as written."""
    from drgrade.segmentation.sheet import overlay_sheet

    some = [one for one in measured if one.counts and one.photograph.split == shown]
    chosen = sorted(some, key=lambda one: (-one.lesions, one.photograph.image_id))[:examples]
    overlay_sheet((_example(one.photograph, levels, out / "maps") for one in chosen), out / "overlays.png")


def _example(photograph: Photograph, levels: Levels, maps: Path) -> "Example":
    from drgrade.segmentation.predict import to_photograph
    from drgrade.segmentation.sheet import Example

    opened = _open(photograph)
    assert opened.image is not None
    with np.load(maps / f"{photograph.image_id}.npz") as arrays:
        spread = to_photograph(arrays["probability"].astype(np.float32), photograph.box, opened.image.shape)
        kinds = arrays["kinds"].tolist()
    predicted = {}
    for kind, values in zip(kinds, spread, strict=True):
        threshold = threshold_of(levels[photograph.part, kind])
        # the maps have 255 steps, so a lower threshold is drawn as 1/255
        predicted[kind] = values >= max(255 * (2 if threshold is None else threshold), 1)
    return Example(photograph.image_id, opened.image, opened.masks, predicted, photograph.box)


def _none_readable(index: Path, measured: Sequence[Measured]) -> str:
    val = [one for one in measured if one.photograph.split == "val"]
    reasons = [f"{one.photograph.image_id}: {reason}" for one in val for reason in one.reasons.values()]
    said = f" ({reasons[0]})" if reasons else ""
    return f"{index}: no validation photograph with masks can be read{said}; put it where the index found it"

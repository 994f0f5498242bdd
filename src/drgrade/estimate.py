"""Estimate the cost of a run before it starts."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drgrade.errors import UserError
from drgrade.grading.deepmt import Params as DeepMT
from drgrade.grading.lesion_counts import Params as LesionCounts
from drgrade.lesions.configs import config_file
from drgrade.params import (
    Contrastive,
    Encoded,
    Grade,
    LesionContrastive,
    Params,
    Pretraining,
    Segmentation,
    SimCLR,
)
from drgrade.params.grading import Shared
from drgrade.params.trainings import folds as folds_of
from drgrade.params.trainings import part_trainings as part_trainings_of
from drgrade.params.trainings import trainings as trainings_of

LARGE = 2000
"""Number of photographs from which the estimate is printed."""
PUBLISHED = {"eyepacs": (88_702, 90.0), "idrid": (597, 1.1), "aptos": (5_590, 10.0), "ddr": (14_430, 0.0)}
"""Photographs and GB of raw files (0: not known) of whole datasets, as their publishers state them."""
CROP_SECONDS = 0.07  # index and crop 15 megapixels on one core, benchmarks/index.py and crop.py
SIZE = {"raw": 1.0, "png": 0.35, "jpeg": 0.09}
"""Bytes of a stored crop relative to its pixels, benchmarks/loader.py."""
CPU_RATE = 9.0  # images a second, forward and backward, EfficientNet-Lite0 at 288 px on 2 cores
FORWARD = 1 / 3
"""Share of a training step that a forward pass takes."""
SEGMENTATION = 50.0
"""Time that a pixel takes in DeepMT-DR's segmentation of the published width, relative to EfficientNet-Lite0,
on a CPU. It is proportional to the square of the width."""
PUBLISHED_WIDTH = 64
UNET = 1.9
"""Time that a pixel takes in the lesion segmentation, relative to EfficientNet-Lite0: 10.9 tiles of 192 px a
second, forward and backward, on 2 cores."""
SEARCH_RATE = 2.0  # megapixels a second of rtmdet-tiny_tiles on 2 cores, benchmarks/detect.py
MEGAPIXELS = 12.0  # of a photograph, as in IDRiD; synthetic ones have a configured width


def count(params: Params, dataset: str) -> int:
    """Photographs that will be used: those in the manifest, else as published, at most the limit."""
    limit = params.datasets[dataset].limit
    manifest = Path(f"results/{dataset}/download/manifest.tsv")
    if manifest.exists():
        names = (line.split("\t")[0].lower() for line in manifest.read_text().splitlines())
        known = sum(name.endswith((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm")) for name in names)
    elif synthetic := getattr(params.download, dataset, None):
        known = 2 * synthetic.patients + synthetic.segmentation
    else:
        known = PUBLISHED.get(dataset, (0, 0.0))[0]
    return min(limit, known) if limit and known else limit or known


class StageCost(NamedTuple):
    """Cost of a stage: number of trainings (or detections), passes over images, hours on 2 CPU cores."""

    stage: str
    trainings: int
    passes: float
    hours: float


def trainings(params: Params) -> dict[str, int]:
    """Number of networks of each experiment that trains whole networks: seeds times folds.

    Networks that leave out a part of the patients (``out_of_fold``) are counted too.
    """
    tuned = [name for name, row in params.experiments.items() if isinstance(row, Grade | DeepMT)]
    return {name: len(trainings_of(params, name)) + len(part_trainings_of(params, name)) for name in tuned}


def probes(params: Params) -> dict[str, Encoded]:
    """Experiments that learn from features of a frozen encoder, with the shared keys filled in."""
    whole = trainings(params)
    rows = {name: params.experiment(name) for name in params.experiments if name not in whole}
    return {name: row for name, row in rows.items() if isinstance(row, Encoded)}


def train_share(params: Params, dataset: str, select: str = "best") -> float:
    """Share of a dataset's photographs that one training on it uses."""
    scheme, index = params.scheme(dataset), params.index
    if scheme == "kfold":
        return 1 - (2 if select == "best" else 1) / len(folds_of(params))
    if scheme == "official":
        parts = _parts(dataset)
        graded = sum(parts.get(name, 0) for name in ("train", "val", "test"))
        share = parts.get("train", 0) / graded if graded else 1.0
        return share if "val" in parts else share * (1 - index.val_fraction)
    return 1 - index.val_fraction - index.test_fraction if scheme == "holdout" else 1.0


def _parts(dataset: str) -> dict[str, int]:
    """Number of photographs of the complete dataset by part, from its dataset card."""
    from drgrade.data.registry import DATASETS

    return {name: part.photographs for name, part in DATASETS.get(dataset).card.counts.items()}


def stage_costs(params: Params) -> Iterator[StageCost]:
    """Costs of the stages that run networks."""
    if _searched(params) and params.lesions.source == "detector":
        yield _detector(params)
    if segmentations := list(_segmentations(params)):
        yield _segmentation(params, segmentations)
    if _searched(params):
        yield _search(params)
    if params.pretrain:
        yield _pretraining(params)
    yield _grading(params)
    if probes(params):
        yield _probes(params)
    if params.features:
        yield _features(params)


def _megapixels(params: Params, dataset: str) -> float:
    """Megapixels of a photograph as the detector processes it: overlapping tiles, or all of it, resized."""
    synthetic = getattr(params.download, dataset, None)
    whole = 0.75 * synthetic.width**2 / 1e6 if synthetic else MEGAPIXELS
    boxes = params.lesion_boxes
    if boxes.tile:
        return whole * boxes.scale**2 / (1 - boxes.overlap) ** 2
    return min(whole * boxes.scale**2, _resized(params.detector.config))


def _resized(config: str) -> float:
    """Most megapixels of an image after the resizing in a detector's config; infinite without any."""
    try:
        text = config_file(config).read_text()
    except UserError:
        return math.inf  # the error is reported elsewhere
    found = re.search(r'"Resize", scale=\((\d+), (\d+)\)', text)
    return int(found[1]) * int(found[2]) / 1e6 if found else math.inf


def _boxes(params: Params) -> set[str]:
    """Sources of the boxes that encoders learn from."""
    return {block.boxes for block in params.pretrain.values() if isinstance(block, LesionContrastive)}


def _searched(params: Params) -> bool:
    """Whether all photographs are searched for lesions."""
    return bool(_boxes(params) & {"detector", "random"}) and params.patches.published is None


def _masked(params: Params) -> int:
    """Photographs with lesion masks to train on."""
    dataset = params.roles.lesions
    synthetic = getattr(params.download, dataset, None)
    return synthetic.segmentation if synthetic else _parts(dataset).get("segmentation train", 0)


def _detector(params: Params) -> StageCost:
    passes = _masked(params) * (1 - params.index.val_fraction) * params.detector.epochs
    hours = passes * _megapixels(params, params.roles.lesions) / SEARCH_RATE / FORWARD / 3600
    return StageCost("detector", 1, passes, hours)


def _segmentations(params: Params) -> Iterator[tuple[Segmentation, int]]:
    """Params of the segmentations that are trained, and of how many networks each."""
    own = params.segmentation
    marks = _searched(params) and params.lesions.source == "segmentation"
    shown = any(explanation.needs == "segmentation" for explanation in params.explanations.values())
    if marks or shown or (own.use and _boxes(params)):
        yield own, own.folds or 1
    for name, row in params.experiments.items():
        if isinstance(row, LesionCounts):
            yield row.segmentation(0), len(trainings_of(params, name))


def _segmentation(params: Params, trained: list[tuple[Segmentation, int]]) -> StageCost:
    """Segmentations of lesions; those that an experiment counts lesions with, too."""
    networks, passes, hours = 0, 0.0, 0.0
    for block, times in trained:
        share = 1 - 2 / block.folds if block.folds else 1 - params.index.val_fraction
        own = _masked(params) * share * block.epochs * times
        networks += times
        passes += own
        pixels = block.tiles_per_photograph * block.tile**2
        hours += own * pixels * UNET / 288**2 / CPU_RATE / 3600
    return StageCost("segmentation", networks, passes, hours)


def _search(params: Params) -> StageCost:
    dataset = params.roles.pretrain
    photographs = count(params, dataset)
    hours = photographs * _megapixels(params, dataset) / SEARCH_RATE / 3600
    return StageCost("lesions", 1, photographs, hours)


def _pretraining(params: Params) -> StageCost:
    dataset, networks = params.roles.pretrain, 0
    passes = hours = 0.0
    for block in params.pretrain.values():
        by_fold = params.scheme(dataset) == "kfold" and dataset == params.roles.grade
        encoders = len(folds_of(params)) if by_fold else 1
        share = 1 - 1 / encoders if by_fold else train_share(params, dataset)
        seen = count(params, dataset) * share * block.epochs * encoders
        networks += encoders
        passes += seen
        hours += seen * _pixels(params, block) / 288**2 / CPU_RATE / 3600
    return StageCost("pretrain", networks, passes, hours)


def _pixels(params: Params, block: Pretraining) -> float:
    """Pixels of all views of a photograph in an epoch; forward-only pixels count as :data:`FORWARD`."""
    if isinstance(block, LesionContrastive):
        return 2 * block.boxes_per_image * params.patches.size**2
    if isinstance(block, SimCLR):
        return 2 * block.input_size**2
    assert not isinstance(block, Contrastive)
    # the student sees all crops, the teacher the global ones, forward only
    return 2 * (1 + FORWARD) * block.global_size**2 + block.local_crops * block.local_size**2


def _pixels_of(block: Shared) -> float:
    """Pixels of a photograph as a network processes it, weighted by time relative to EfficientNet-Lite0."""
    if isinstance(block, LesionCounts):
        return UNET * block.input_size**2
    if not isinstance(block, DeepMT):
        return block.input_size**2
    width = 0 if block.segmentation == "none" else block.segmentation_width
    return block.high_size**2 * (1 + SEGMENTATION * (width / PUBLISHED_WIDTH) ** 2)


def _grading(params: Params) -> StageCost:
    """Trainings of whole networks, counted as forward and backward passes.

    Further forward passes of DeepMT-DR's task-aware losses are not counted; its second phase, which passes
    forward only through the segmentation, is counted in full.
    """
    graded, networks = count(params, params.roles.grade), trainings(params)
    passes = hours = 0.0
    for name, times in networks.items():
        block = params.experiment(name)
        assert isinstance(block, Grade | DeepMT)
        share = train_share(params, params.roles.grade, block.select) * block.label_fraction
        each = block.passes if isinstance(block, DeepMT) else block.epochs
        own = graded * share * each * times
        passes += own
        hours += own * _pixels_of(block) / 288**2 / CPU_RATE / 3600
    return StageCost("grade", sum(networks.values()), passes, hours)


def _probes(params: Params) -> StageCost:
    """Features of frozen encoders: each photograph once per training, forward only."""
    graded = count(params, params.roles.grade) + sum(count(params, name) for name in params.roles.external)
    times = passes = 0
    hours = 0.0
    for name, block in probes(params).items():
        own = len(trainings_of(params, name))
        times += own
        passes += graded * own
        hours += graded * own * _pixels_of(block) / 288**2 * FORWARD / CPU_RATE / 3600
    return StageCost("probes", times, passes, hours)


def _features(params: Params) -> StageCost:
    """Feature sets: every photograph once per transform and model, forward only."""
    graded = count(params, params.roles.grade) + sum(count(params, name) for name in params.roles.external)
    jobs, passes, hours = 0, 0.0, 0.0
    for name, block in params.features.items():
        source = params.experiment(block.experiment)
        assert isinstance(source, Encoded)
        times = len(trainings_of(params, block.experiment))
        # with parts, a training photograph has features of one model, others of each; this counts all of each
        own = graded * block.transforms * times * max(1, params.parts_of_features(name))
        jobs += times
        passes += own
        hours += own * _pixels_of(source) / 288**2 * FORWARD / CPU_RATE / 3600
    return StageCost("features", jobs, passes, hours)


def estimate(params: Params, cores: int) -> list[str]:
    """Lines to print before a large run; none for a small one."""
    lines = []
    for name in params.datasets:
        photographs = count(params, name)
        if photographs < LARGE:
            continue
        store = photographs * params.crop.size**2 * 3 / 1e9 * SIZE[params.crop.format]
        hours = photographs * CROP_SECONDS / cores / 3600
        raw = PUBLISHED.get(name, (0, 0.0))[1]
        beside = f" beside {raw:.0f} GB of raw files" if raw else ""
        lines.append(
            f"{name}: {photographs} photographs; disk: {store:.1f} GB of crops{beside}; "
            f"index and crop about {hours:.1f} h on {cores} cores"
        )
    stages = list(stage_costs(params))
    if lines or sum(stage.hours for stage in stages) > 1:
        lines += [
            f"{stage.stage}: {stage.trainings} runs, {stage.passes:.0f} photograph passes: about "
            f"{stage.hours:.1f} h"
            for stage in stages
        ]
        lines.append("hours are of 2 CPU cores and small networks; a GPU is many times faster")
    return lines

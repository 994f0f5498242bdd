"""Blocks of the stages that find lesions: ``workflow/rules/lesions.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Block, Fraction, Seed


class LesionBoxes(Block):
    """Lesion masks to boxes to COCO, on tiles the detector can learn from."""

    mode: Literal["corrected", "parity"] = "corrected"
    """corrected: clamped boxes, minimum area, fragments merged; parity: as published."""
    tile: Annotated[int, Field(ge=64, le=4096)] | None = 320
    """Side of a training tile in pixels after scaling; null takes each photograph whole."""
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """Least overlap of neighbouring tiles as a share of their side."""
    scale: Annotated[float, Field(gt=0, le=2)] = 0.75
    """Resize the photographs by this factor before tiling."""
    min_area: Annotated[int, Field(ge=1)] = 4
    """Smallest lesion kept, in original mask pixels (corrected mode)."""
    merge_distance: Annotated[int, Field(ge=0)] = 2
    """Fragments of one kind closer than this many original pixels are one lesion (corrected mode)."""
    min_side: Annotated[int, Field(ge=1)] = 8
    """Smaller boxes grow to this side in tile pixels: no detector places a box of 3 pixels well."""


class LesionMasks(Block):
    """Bring lesion masks into the crops, for graders that learn from them."""

    kinds: Annotated[list[Literal["MA", "HE", "EX", "SE"]], Field(min_length=1)] = ["MA", "HE", "EX", "SE"]
    """Kinds of lesions whose masks are read: microaneurysms, haemorrhages, hard and soft exudates."""


class Detector(Block):
    """Train the lesion detector with MMDetection."""

    config: str = "rtmdet-tiny_tiles"
    """A file in ``workflow/detectors/`` (without .py)."""
    start: str | None = "imagenet"
    """Start weights: imagenet (the packaged backbone's), a file (of the backbone, or of a whole detector as
    MMDetection gives them out), or null for a random start."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """Passes over the training tiles."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Tiles a step."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Peak learning rate."""
    background_tiles: Fraction = 0.25
    """Share of lesion-free training tiles kept."""
    seed: Seed = 1
    """Seed of initialisation, order and augmentation."""


class Lesions(Block):
    """Run the detector over the photographs used for pretraining."""

    batch_size: Annotated[int, Field(ge=1)] = 8
    """Tiles a forward pass."""
    min_score: Fraction = 0.05
    """Detections below this are not kept."""
    nms_iou: Fraction = 0.5
    """Boxes of one kind that overlap more than this across tile seams are one."""
    max_per_image: Annotated[int, Field(ge=1)] = 500
    """Best-scored detections kept for a photograph; an eye full of exudates has hundreds."""


class LesionMetrics(Block):
    """Measure the detector on photographs with masks that it did not learn from."""

    match: Literal["iou", "centre"] = "iou"
    """What counts as found. iou: boxes that overlap by a half or more; centre: a detection whose centre lies
    in the lesion's box, as FROC studies of microaneurysms count."""
    examples: Annotated[int, Field(ge=1)] = 6
    """Hits, misses and false alarms of each kind that are drawn."""


Source = Literal["detector", "masks", "random"]
"""Where the boxes to learn from come from."""


class Patches(Block):
    """Choose the boxes that pretraining will look at; writes the field's pickle."""

    published: str | None = None
    """A released pickle, raw predictions or patches, in place of what the detector found; needs crop.rule o_O
    and crop.aspect squash, which its boxes lie in."""
    legacy_swap: bool = False
    """Scale published raw predictions with width and height swapped, as the released patches were."""
    size: Annotated[int, Field(ge=16)] = 64
    """Side of a patch in crop pixels (128 at 512 px crops in the paper); larger boxes are dropped."""
    min_score: Fraction = 0.3
    """Detections must score above this (0.7 and 0.8 in the released models); masks have no score."""
    border: Annotated[int, Field(ge=0)] = 5
    """Boxes must stay further than this from the crop's edge, in pixels at 512 px crops."""
    lesions: list[Literal["MA", "HE", "EX", "SE"]] = ["MA", "HE", "EX", "SE"]
    """Kinds of lesion to keep."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Photographs with fewer boxes are left out."""
    seed: Seed = 1
    """Seed of random boxes."""

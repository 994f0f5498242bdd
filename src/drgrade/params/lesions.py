"""Blocks of the stages that find lesions: ``workflow/rules/lesions.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Block, Fraction, Seed, Zoom


class LesionBoxes(Block):
    """Convert lesion masks to boxes in COCO format, on tiles for the detector's training."""

    mode: Literal["corrected", "parity"] = "corrected"
    """corrected: boxes clamped to the image, minimum area, fragments merged; parity: as published."""
    tile: Annotated[int, Field(ge=64, le=4096)] | None = 320
    """Side of a training tile in pixels after scaling; null: whole photographs."""
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """Minimum overlap of neighbouring tiles as a share of their side."""
    scale: Annotated[float, Field(gt=0, le=2)] = 0.75
    """Resize the photographs by this factor before tiling."""
    min_area: Annotated[int, Field(ge=1)] = 4
    """Smallest lesion kept, in original mask pixels (corrected mode)."""
    merge_distance: Annotated[int, Field(ge=0)] = 2
    """Fragments of one kind closer than this many original pixels are one lesion (corrected mode)."""
    min_side: Annotated[int, Field(ge=1)] = 8
    """Smaller boxes are enlarged to this side in tile pixels, as detectors locate tiny boxes poorly."""


class LesionMasks(Block):
    """Transform lesion masks to crop pixels, for graders that are trained on them."""

    kinds: Annotated[list[Literal["MA", "HE", "EX", "SE"]], Field(min_length=1)] = ["MA", "HE", "EX", "SE"]
    """Kinds of lesions whose masks are read: microaneurysms, haemorrhages, hard and soft exudates."""


class Detector(Block):
    """Train the lesion detector with MMDetection."""

    config: str = "rtmdet-tiny_tiles"
    """A file in ``workflow/detectors/`` (without .py)."""
    start: str | None = "imagenet"
    """Initial weights: imagenet (the packaged backbone), a weights file (of the backbone, or of a whole
    detector as distributed by MMDetection), or null for random weights."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """Passes over the training tiles."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Tiles per step."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Peak learning rate."""
    background_tiles: Fraction = 0.25
    """Share of the lesion-free training tiles that is used."""
    seed: Seed = 1
    """Seed of initialisation, order and augmentation."""


class Lesions(Block):
    """Find lesions in the photographs used for pretraining."""

    source: Literal["detector", "segmentation"] = "detector"
    """What finds them: the detector, or the network of the stage segmentation, of whose marks the boxes are
    taken (its ``folds`` must be null)."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """detector: tiles per forward pass."""
    min_score: Fraction = 0.05
    """Lesions with a lower score are dropped. The score of a mark is its highest probability."""
    mark_threshold: Fraction = 0.3
    """segmentation: pixels with a higher probability belong to a mark."""
    min_mark: Annotated[int, Field(ge=1)] = 3
    """segmentation: smaller marks are dropped; pixels of the photograph scaled by ``segmentation.scale``."""
    nms_iou: Fraction = 0.5
    """detector: IoU threshold of non-maximum suppression, per kind of lesion and across tiles."""
    max_per_image: Annotated[int, Field(ge=1)] = 500
    """Maximum number of detections per photograph, by score; eyes with many exudates have hundreds."""


class LesionMetrics(Block):
    """Evaluate the detector on photographs with masks that were not used for its training."""

    match: Literal["iou", "centre"] = "iou"
    """When a detection is a hit. iou: IoU with the lesion's box of 0.5 or more; centre: its centre lies in
    the lesion's box, as in FROC studies of microaneurysms."""
    examples: Annotated[int, Field(ge=1)] = 6
    """Number of hits, misses and false positives of each kind that are shown as figures."""


class Segmentation(Block):
    """Train a network that marks the lesions of each kind pixel by pixel."""

    use: bool = True
    """Whether to train it with the lesion detector; grading does not need it."""
    folds: Annotated[int, Field(ge=3)] | None = None
    """Cross-validation over the photographs with masks, which tests each of them once; null: the split of the
    index."""
    kinds: Annotated[list[Literal["MA", "HE", "EX", "SE"]], Field(min_length=1)] = ["MA", "HE", "EX", "SE"]
    """Kinds of lesions: microaneurysms, haemorrhages, hard and soft exudates."""
    architecture: Literal["unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3plus"] = (
        "unet"
    )
    """Decoder, by its name in segmentation-models-pytorch."""
    encoder: str = "tf_efficientnet_lite0"
    """timm name of the encoder."""
    start: str = "imagenet"
    """Initial weights of the encoder: imagenet, random, or a weights file."""
    scale: Annotated[float, Field(gt=0, le=2)] = 0.75
    """Resize the photographs by this factor before tiling; microaneurysms need a scale near 1."""
    tile: Annotated[int, Field(ge=64, le=2048, multiple_of=32)] = 128
    """Side of a tile in pixels after scaling."""
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.25
    """Minimum overlap of neighbouring tiles in prediction, as a share of their side."""
    tiles_per_photograph: Annotated[int, Field(ge=1)] = 6
    """Tiles that are cut from each photograph, at random places, in an epoch."""
    lesion_share: Fraction = 1.0
    """Share of the training tiles around a lesion, all kinds equally often; the others lie anywhere."""
    zoom: Zoom = [0.8, 1.25]
    """Range of the random enlargement of a training tile, log-uniform."""
    loss: Literal["dice_squared", "dice", "bce", "dice_squared_bce", "focal", "tversky"] = "dice_squared_bce"
    """dice_squared: Dice with squared probabilities in the denominator; dice_squared_bce: its sum with binary
    cross-entropy; the others are those of segmentation-models-pytorch."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Tiles per step."""
    lr: Annotated[float, Field(gt=0)] = 0.005
    """Peak learning rate of AdamW, in a one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""
    select: Literal["last", "best"] = "last"
    """Which weights to keep: of the last epoch, or of the epoch with the best mean AUPR in validation."""
    transforms: Literal[1, 8] = 1
    """Test-time augmentation: 8 averages over all flips and rotations by right angles."""
    seed: Seed = 1
    """Seed of initialisation, order and augmentation."""


class SegmentationMetrics(Block):
    """Measure the segmentation on photographs that it was not trained on."""

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the photographs, for 95 % intervals."""
    examples: Annotated[int, Field(ge=1)] = 4
    """Photographs on the sheet of overlays."""


Source = Literal["detector", "masks", "random"]
"""Source of the boxes used for pretraining."""


class Patches(Block):
    """Choose the lesion boxes for pretraining and write them as a pickle in the published format."""

    published: str | None = None
    """A released pickle, raw predictions or patches, to use instead of the detections; needs crop.rule o_O
    and crop.aspect squash, to which its boxes refer."""
    legacy_swap: bool = False
    """Scale published raw predictions with width and height swapped, as in the released patches."""
    size: Annotated[int, Field(ge=16)] = 64
    """Side of a patch in crop pixels (128 at 512 px crops in the paper); larger boxes are dropped."""
    min_score: Fraction = 0.3
    """Detections need a score above this (0.7 and 0.8 in the released models); masks have no score."""
    border: Annotated[int, Field(ge=0)] = 5
    """Boxes must be further than this from the crop's edge, in pixels of 512 px crops."""
    lesions: list[Literal["MA", "HE", "EX", "SE"]] = ["MA", "HE", "EX", "SE"]
    """Kinds of lesion to keep."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Photographs with fewer boxes are not used."""
    seed: Seed = 1
    """Seed of the random boxes."""

"""The one definition of ``params.yaml``: every key, its type, range, default and meaning.

``load`` checks a file and fills in defaults; ``json_schema`` is what editors complete against
(``workflow/schemas/params.schema.json``). Only what changes results is here: cores, devices and
tracking servers belong to the profile and the environment.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from drgrade.errors import UserError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Grader = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Block(BaseModel):
    """A block of ``params.yaml``: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


Scheme = Literal["official", "holdout", "kfold", "file"]


class Dataset(Block):
    """One dataset that takes part; its name is the name of a module in ``drgrade.data``."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only this many graded photographs (whole patients, every grade): try a large dataset small."""
    scheme: Scheme | None = None
    """Overrides ``index.scheme`` for this dataset."""
    split_file: str | None = None
    """A CSV (image_id, split) to split this dataset by; used under the scheme ``file``."""
    exclude: str | None = None
    """A CSV with a column image_id, such as the list of overlaps: these photographs take no part."""


class Roles(Block):
    """Which dataset plays which part; each must be a key of ``datasets``."""

    lesions: Name = "demo"
    """Trains the lesion detector: needs lesion masks."""
    pretrain: Name = "demo"
    """Its photographs are searched for lesions and used, without grades, for pretraining."""
    grade: Name = "demo"
    """Trains and tests the graders: needs grades."""
    external: list[Name] = []
    """Test the graders once more, as they are, on all graded photographs of these."""


class Demo(Block):
    """The painted dataset."""

    patients: Annotated[int, Field(ge=5)] = 60
    """Patients with a graded photograph of each eye."""
    segmentation: Annotated[int, Field(ge=0)] = 16
    """Further photographs with exact lesion masks, in the layout of IDRiD part A; 0: no such layout."""
    masks: Literal["segmentation", "all"] = "segmentation"
    """all: exact masks of the graded photographs too, for ``pretrain.<name>.boxes: masks``; detectors and
    heat maps do not look at them."""
    width: Annotated[int, Field(ge=256, le=4288)] = 800
    """Mean width of a photograph in pixels; cameras differ around it."""
    seed: Seed = 7
    """Same seed, same bytes."""
    lesion_contrast: Annotated[float, Field(gt=0, le=2)] = 1.0
    """How much lesions stand out from the retina; below 1 they are harder to see."""
    label_noise: Fraction = 0.0
    """Chance that a written grade is one off the true one, as another reader's would be."""
    camera_shift: Fraction = 0.0
    """How far the camera differs from the usual one: colour, blur, vignette, noise, compression; at 1
    pictures are also 0.8 as wide and show the whole field."""


class Download(Block):
    """Fetch, verify or paint the raw photographs."""

    demo: Demo = Demo()
    demo_site: Demo = Demo(patients=16, segmentation=0, seed=8, camera_shift=1.0)
    """A second painted hospital with another camera, for external tests."""


class Index(Block):
    """List the photographs, join their labels and split them by patient."""

    scheme: Scheme = "holdout"
    """official: the dataset's own split, its training part divided into train and val;
    holdout: train, val and test drawn here; kfold: every photograph is tested once, out of fold;
    file: as ``datasets.<name>.split_file`` says."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of patients for validation (of the training part under ``official``; unused under ``kfold``)."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of patients for the test under ``holdout``."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Number of folds under ``kfold``."""
    folds_file: str | None = None
    """A committed CSV (image_id, fold) to use instead of drawing folds."""
    duplicate_bits: Annotated[int, Field(ge=0, le=15)] | None = 10
    """Photographs whose 256-bit perceptual hashes differ in at most this many bits are the same one and
    stay in one split; null compares files byte by byte only."""
    min_quality: Fraction = 0.0
    """Photographs whose computed quality is lower take no part; they stay in the index with the reason."""
    drop_rejected: bool = False
    """Leave out photographs that the dataset itself calls ungradable (EyeQ reject, and the like)."""
    seed: Seed = 1
    """Seed of the split."""


class Overlaps(Block):
    """Look for photographs and patients that are trained on in one place and tested on in another."""

    refuse: list[Literal["image", "patient", "content", "perceptual"]] = [
        "image",
        "patient",
        "content",
        "perceptual",
    ]
    """Levels at which an overlap stops the run; the others are only listed in ``overlaps.csv``."""
    duplicate_bits: Annotated[int, Field(ge=0, le=15)] | None = 10
    """As ``index.duplicate_bits``, here also across datasets."""


class Crop(Block):
    """Cut each photograph to its field of view and scale it to a square store."""

    rule: Literal["disc", "o_O", "graham", "clpi"] = "disc"
    """disc: fit the field of view as a circle; o_O: the published box decision, bit for bit;
    graham: radius rescaled, local mean removed (Kaggle 2015 first place); clpi: centre square, local median
    removed."""
    size: Annotated[int, Field(ge=32, le=2048)] = 256
    """Side of a stored crop in pixels (512 in the papers)."""
    aspect: Literal["pad", "squash"] = "pad"
    """pad: keep the shape of the eye, black around it; squash: stretch to the square as published;
    graham and clpi keep the shape in either case."""
    format: Literal["raw", "png", "jpeg"] = "raw"
    """raw: memory-mapped pixels, fastest; png: lossless, about half the disk; jpeg: a tenth of it."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of stored crops, without colour subsampling; other formats ignore it."""
    max_failed_fraction: Fraction = 0.1
    """Stop only when more than this share of the photographs cannot be read."""


class LesionBoxes(Block):
    """Lesion masks to boxes to COCO, on tiles the detector can learn from."""

    mode: Literal["corrected", "parity"] = "corrected"
    """corrected: clamped boxes, minimum area, fragments merged; parity: as published."""
    tile: Annotated[int, Field(ge=64, le=4096)] | None = 384
    """Side of a training tile in pixels after scaling; null takes each photograph whole."""
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """Least overlap of neighbouring tiles as a share of their side."""
    scale: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Resize the photographs by this factor before tiling."""
    min_area: Annotated[int, Field(ge=1)] = 4
    """Smallest lesion kept, in original mask pixels (corrected mode)."""
    merge_distance: Annotated[int, Field(ge=0)] = 2
    """Fragments of one kind closer than this many original pixels are one lesion (corrected mode)."""
    min_side: Annotated[int, Field(ge=1)] = 8
    """Smaller boxes grow to this side in tile pixels: no detector places a box of 3 pixels well."""


class Detector(Block):
    """Train the lesion detector with MMDetection."""

    config: str = "rtmdet-tiny_tiles"
    """A file in ``workflow/detectors/`` (without .py)."""
    start: str | None = "imagenet"
    """Start weights: imagenet (the packaged backbone's), a file (of the backbone, or of a whole detector as
    MMDetection gives them out), or null for a random start."""
    epochs: Annotated[int, Field(ge=1)] = 7
    """Passes over the training tiles."""
    batch_size: Annotated[int, Field(ge=1)] = 4
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


class Augment(Block):
    """Random changes a picture goes through in training; each can be switched off with 0."""

    flip: Fraction = 0.5
    """Chance of a horizontal and, drawn apart, of a vertical flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Rotation in degrees, uniform in plus and minus this."""
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.87, 1.15]
    """Range of the area that is cropped and resized, relative to the picture."""
    ratio: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.8, 1.25]
    """Range of the crop's aspect ratio."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Shift along each axis as a share of the side, uniform in plus and minus this."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Brightness factor, uniform in 1 plus and minus this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Contrast factor, uniform in 1 plus and minus this."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Saturation factor, uniform in 1 plus and minus this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Hue turn as a share of the circle, uniform in plus and minus this."""
    grayscale: Fraction = 0.0
    """Chance of losing all colour."""


CONTRASTIVE = Augment(
    scale=[0.8, 1.2], ratio=[0.8, 1.25], translate=0.2,
    brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2,
)  # fmt: skip
"""List of Huang et al., MICCAI 2021 (specification 7.2)."""


class Contrastive(Block):
    """What contrastive methods share: two views of a thing are pulled together, other things pushed away."""

    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone."""
    start: str = "imagenet"
    """random, imagenet, or a weights file."""
    head: Literal["mlp", "linear"] = "mlp"
    """Projection to 128 values: Linear-ReLU-Linear, or one Linear."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Visits to every photograph (1000 in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Pairs a step, over all devices (768 in the paper)."""
    chunk: Annotated[int, Field(ge=2)] | None = None
    """Views in memory at a time, for batches that do not fit: the loss and its negatives stay those of the
    whole batch, BatchNorm sees a chunk, a step takes a forward pass more. Null: the whole batch at once."""
    optimiser: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd: Nesterov momentum 0.9, as published; lars: the same, each layer's step scaled by its norms."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, cosine to zero."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps over which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On all parameters with sgd, as published; not on biases and norms with lars and adamw."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Of the loss."""
    seed: Seed = 1
    """Seed of everything random."""
    augment: Augment = CONTRASTIVE


class LesionContrastive(Contrastive):
    """Lesion-based contrastive pretraining (Huang et al., MICCAI 2021)."""

    method: Literal["lesion_contrastive"] = "lesion_contrastive"
    """The module of ``drgrade.pretrain``."""

    boxes: Source = "detector"
    """detector: lesions it found; masks: lesions drawn in masks; random: as many boxes as detector gives, of
    the same sizes, anywhere on the retina. The last two tell what the detector is worth."""
    boxes_per_image: Annotated[int, Field(ge=1)] = 1
    """Lesions of a photograph shown in an epoch (1 in the paper), or all it has if fewer."""
    window: Literal["inside", "published"] = "inside"
    """inside: windows stay in the crop; published: they may leave it on the right and below, into black."""
    order: Literal["fused", "published"] = "fused"
    """fused: all colours, then all moves, a pass each; published: one after the other, many times slower."""
    positives: Literal["pair", "lesion"] = "pair"
    """pair: the two views of a lesion (NT-Xent); lesion: all views of its kind in the batch (SupCon, Khosla
    et al., 2020), which answers that lesions of one kind push each other away."""


class SimCLR(Contrastive):
    """The same on whole photographs: SimCLR (Chen et al., ICML 2020), the papers' baseline."""

    method: Literal["simclr"] = "simclr"
    """The module of ``drgrade.pretrain``."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of a view in pixels (128 and 224 in the paper)."""


class LocalToGlobal(Block):
    """Local-to-global self-distillation: DINO (Caron et al., ICCV 2021) on fundus photographs."""

    method: Literal["local_to_global"] = "local_to_global"
    """The module of ``drgrade.pretrain``."""

    encoder: str = "vit_small_patch16_224"
    """A timm vision transformer: S or B, patches of 8 or 16."""
    start: str = "random"
    """random, imagenet, or a weights file."""
    preset: Literal["dino", "fundus", "lesion"] = "fundus"
    """dino: crops and colours as published; fundus: turned every way, no loss of colour; lesion: fundus, with
    one local crop centred on a detected lesion where there is one."""
    global_size: Annotated[int, Field(ge=32)] = 224
    """Side of the two global crops."""
    boxes: Source = "detector"
    """Of the preset lesion; as for lesion_contrastive."""
    local_size: Annotated[int, Field(ge=16)] = 96
    """Side of the local crops."""
    local_crops: Annotated[int, Field(ge=1)] = 6
    """Local crops of a photograph."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the photographs."""
    batch_size: Annotated[int, Field(ge=2)] = 20
    """Photographs a step."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW for a batch of 256; that used is lr * batch_size / 256."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """Epochs over which the learning rate rises from 0; then cosine to 1e-6."""
    weight_decay: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.04, 0.4]
    """At the first and the last step, cosine between; none on biases and norms."""
    teacher_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Of the teacher's moving average at the first step, cosine to 1."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    """Of the teacher's softmax; the student's is 0.1."""
    out_dim: Annotated[int, Field(ge=16)] = 65536
    """Prototypes of the head (4096 to 8192 for small data)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student."""
    clip: Annotated[float, Field(gt=0)] = 3.0
    """Largest norm of each parameter's gradient."""
    freeze_last: Annotated[int, Field(ge=0)] = 1
    """Epochs in which the head's last layer stays as it is."""
    seed: Seed = 1
    """Seed of everything random."""


METHODS = ("lesion_contrastive", "simclr", "local_to_global")
Pretraining = Annotated[LesionContrastive | SimCLR | LocalToGlobal, Field(discriminator="method")]
"""What one encoder is pretrained by."""


class Knn(Block):
    """Weighted votes of the nearest training photographs in the space of a frozen encoder."""

    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [5, 10, 15, 20]
    """Neighbours that vote; the best of several by validation QWK, the first where nothing validates."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""


class Linear(Block):
    """A linear regression of the grade on the features of a frozen encoder."""

    lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.0003, 0.001, 0.003, 0.01]
    """Learning rates of Adam; the best of several by validation QWK, the first where nothing validates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of all weights."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the features."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Features a step."""


class Grade(Block):
    """Fine-tune a whole network on grades; shared by all experiments."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of the network's input; crops are scaled to it once."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Photographs a step."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    select: Literal["best", "last"] = "best"
    """Keep the epoch with the best validation QWK, or the last one (needs no validation set)."""
    augment: Augment = Augment()
    knn: Knn = Knn()
    linear: Linear = Linear()


class Experiment(Block):
    """One row of the leaderboard."""

    grader: Grader = "finetune"
    """A module of ``drgrade.grading``: majority, finetune, ..."""
    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone; ignored by graders without one."""
    start: str = "imagenet"
    """random, imagenet, a name in ``pretrain``, or a weights file."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose grades are used; small fractions lie inside larger ones."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """One training for each."""


class Evaluate(Block):
    """Measure predictions; the leaderboard."""

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of patients for the 95 % intervals."""
    seed: Seed = 1
    """Seed of the resamples."""


class Explain(Block):
    """Heat maps over photographs, scored against lesion masks."""

    method: str = "cam"
    """A module of ``drgrade.explain``."""
    experiment: Name = "lesion_contrastive"
    """Whose model is explained (its first seed)."""
    images: Annotated[int, Field(ge=1)] = 6
    """Photographs with masks, and as many graded test photographs."""


class Report(Block):
    """Figures, model cards and the page that shows them."""

    sheet: Annotated[int, Field(ge=4)] = 24
    """Crops on the contact sheet."""


class Params(Block):
    """Everything that decides a result."""

    datasets: dict[Name, Dataset] = {"demo": Dataset(), "demo_site": Dataset()}
    """The datasets that take part."""
    roles: Roles = Roles(external=["demo_site"])
    download: Download = Download()
    index: Index = Index()
    overlaps: Overlaps = Overlaps()
    crop: Crop = Crop()
    lesion_boxes: LesionBoxes = LesionBoxes()
    detector: Detector = Detector()
    lesions: Lesions = Lesions()
    lesion_metrics: LesionMetrics = LesionMetrics()
    patches: Patches = Patches()
    pretrain: dict[Name, Pretraining] = {"lesion_contrastive": LesionContrastive()}
    """Encoders pretrained without grades, by name; the name is the method where ``method`` is not given."""
    grade: Grade = Grade()
    experiments: dict[Name, Experiment] = {
        "majority": Experiment(grader="majority"),
        "random": Experiment(start="random", seeds=[0, 1]),
        "imagenet": Experiment(start="imagenet", seeds=[0, 1]),
        "lesion_contrastive": Experiment(start="lesion_contrastive", seeds=[0, 1]),
    }
    """The rows of the leaderboard, by name."""
    evaluate: Evaluate = Evaluate()
    explain: Explain = Explain()
    report: Report = Report()

    def scheme(self, dataset: str) -> Scheme:
        """How a dataset is split: its own scheme, else that of ``index``."""
        return self.datasets[dataset].scheme or self.index.scheme

    @field_validator("pretrain", mode="before")
    @classmethod
    def _named_after_the_method(cls, blocks: Any) -> Any:
        if not isinstance(blocks, dict):
            return blocks
        return {
            name: {"method": name} | block if isinstance(block, dict) else block
            for name, block in blocks.items()
        }

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for role, names in self.roles.model_dump().items():
            for dataset in names if isinstance(names, list) else [names]:
                if dataset not in self.datasets:
                    raise ValueError(
                        f"roles.{role}: {dataset!r} is not one of datasets "
                        f"({', '.join(self.datasets)}); add it there or change the role"
                    )
        taken = {"random", "imagenet"} & set(self.pretrain)
        if taken:
            raise ValueError(
                f"pretrain.{min(taken)}: experiments start from {min(taken)} weights; name it otherwise"
            )
        if self.roles.grade in self.roles.external:
            raise ValueError(
                f"roles.external: {self.roles.grade!r} trains the graders; an external test is on other data"
            )
        for name, dataset in self.datasets.items():
            if self.scheme(name) == "file" and dataset.split_file is None:
                raise ValueError(
                    f"datasets.{name}.split_file: the scheme 'file' needs a CSV (image_id, split); name it"
                )
        if self.explain.experiment not in self.experiments:
            raise ValueError(
                f"explain.experiment: {self.explain.experiment!r} is not one of experiments "
                f"({', '.join(self.experiments)})"
            )
        scheme = self.scheme(self.roles.grade)
        if scheme == "kfold" and self.grade.select == "best" and self.index.folds < 3:
            raise ValueError(
                "grade.select: 'best' needs a validation fold beside the test fold; "
                "set index.folds to 3 or more, or grade.select to last"
            )
        if scheme == "holdout" and self.index.val_fraction + self.index.test_fraction >= 1:
            raise ValueError(
                "index.val_fraction: leaves no training patients; lower it or index.test_fraction"
            )
        if self.patches.size > self.crop.size:
            raise ValueError("patches.size: larger than crop.size; a patch is cut from a crop")
        if self.patches.published and (self.crop.rule, self.crop.aspect) != ("o_O", "squash"):
            raise ValueError(
                "patches.published: its boxes lie in crops of crop.rule o_O and crop.aspect squash; set both"
            )
        return self


def _one_line(error: ValidationError, source: str) -> str:
    problem = error.errors()[0]
    path = list(problem["loc"])
    # pydantic puts the method of a pretraining into the path, behind its name if it has one
    place = 2 if path[:1] == ["pretrain"] else 0
    if path[place : place + 1] and path[place] in METHODS:
        del path[place]
    key = ".".join(map(str, path))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = "no such key; the schema in workflow/schemas lists them"
    elif key:
        text = f"{text[0].lower()}{text[1:]}, not {problem['input']!r}"
    return f"{source}: {key}: {text}" if key else f"{source}: {text}"


def check(values: Any, source: str) -> Params:
    """Hold values to the model.

    Raises:
        UserError: one line with the key's path: an unknown key, a wrong type, an impossible combination.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def check_block(block: Any, text: str, source: str) -> Any:
    """One block, or one of several kinds of block, given as JSON on a verb's command line.

    Raises:
        UserError: not JSON, or not such a block.
    """
    try:
        return TypeAdapter(block).validate_json(text)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        UserError: the file is missing, is not YAML, or breaks the model.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    return check(values or {}, str(path))


def json_schema() -> str:
    """JSON Schema of ``params.yaml``, as committed in ``workflow/schemas``."""
    return json.dumps(Params.model_json_schema(), indent=2, sort_keys=True) + "\n"

"""Blocks of the stages from raw photographs to crops: ``workflow/rules/images.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Block, Fraction, Name, Seed

Scheme = Literal["official", "holdout", "kfold", "file"]


class Dataset(Block):
    """One dataset that is used; its name is the name of a module in ``drgrade.data``."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many graded photographs (whole patients, all grades), for a quick trial."""
    scheme: Scheme | None = None
    """Overrides ``index.scheme`` for this dataset."""
    split_file: str | None = None
    """A CSV (image_id, split) with this dataset's split, for the scheme ``file``."""
    exclude: str | None = None
    """A CSV with a column image_id, such as the list of overlaps: these photographs are not used."""
    numbers_per_patient: Annotated[int, Field(ge=2)] | None = None
    """Graded photographs with this many consecutive numbers count as one patient (8: 0 to 7, 8 to 15, and so
    on), for datasets that name no patients, such as ``idrid``."""


class Roles(Block):
    """Which dataset is used for what; each must be a key of ``datasets``."""

    lesions: Name = "demo"
    """Trains the lesion detector, if a pretraining uses lesion boxes: needs lesion masks. Heat maps are
    scored on its masks, if it has any."""
    pretrain: Name = "demo"
    """Used for pretraining, without grades; lesions are detected on its photographs."""
    grade: Name = "demo"
    """Trains and tests the graders: needs grades."""
    external: list[Name] = []
    """External tests: the trained graders are tested on all graded photographs of these datasets."""


class Demo(Block):
    """The synthetic dataset."""

    patients: Annotated[int, Field(ge=5)] = 50
    """Patients with a graded photograph of each eye."""
    segmentation: Annotated[int, Field(ge=0)] = 16
    """Additional photographs with exact lesion masks, in the layout of IDRiD part A; 0: no such layout."""
    masks: Literal["segmentation", "all"] = "segmentation"
    """all: exact masks of the graded photographs too, for ``pretrain.<name>.boxes: masks``; they are not used
    for detectors or heat maps."""
    width: Annotated[int, Field(ge=256, le=4288)] = 800
    """Mean width of a photograph in pixels; cameras vary around it."""
    seed: Seed = 7
    """Seed of all random numbers; the same seed gives identical files."""
    lesion_contrast: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Contrast of lesions against the retina; below 1 they are harder to see."""
    label_noise: Fraction = 0.0
    """Probability that a label differs from the true grade by one, like the grade of another reader."""
    camera_shift: Fraction = 0.0
    """Difference of the camera from the usual one: colour, blur, vignetting, noise, compression; at 1 images
    are also 0.8 times as wide and show the whole field of view."""


class Download(Block):
    """Fetch, verify or generate the raw photographs."""

    demo: Demo = Demo()
    demo_site: Demo = Demo(patients=16, segmentation=0, seed=8, camera_shift=1.0)
    """A second synthetic hospital with another camera, for external tests."""


class Index(Block):
    """List the photographs, join their labels and split them by patient."""

    scheme: Scheme = "holdout"
    """official: the dataset's own split, its training part divided into train and val, without duplicates
    (if its test part is not there, models are trained and nothing is tested);
    holdout: random train, val and test; kfold: cross-validation, every photograph is tested once;
    file: the split in ``datasets.<name>.split_file``."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of patients for validation (of the training part under ``official``; unused under ``kfold``). 0
    under ``official``: no validation set; the dataset's own validation part is tested."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of patients for testing under ``holdout``."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Number of folds under ``kfold``."""
    folds_file: str | None = None
    """A committed CSV (image_id, fold) to use instead of drawing folds."""
    duplicate_bits: Annotated[int, Field(ge=0, le=15)] | None = 10
    """Photographs whose 256-bit perceptual hashes differ in at most this many bits count as duplicates and
    stay in one split; null: only identical files do."""
    min_quality: Fraction = 0.0
    """Photographs with a lower computed quality are not used; they stay in the index with the reason."""
    drop_rejected: bool = False
    """Leave out photographs that the dataset labels as ungradable (such as EyeQ's reject)."""
    seed: Seed = 1
    """Seed of the split."""


class Overlaps(Block):
    """Find photographs and patients that are used for training in one dataset and for testing in another."""

    refuse: list[Literal["image", "patient", "content", "perceptual"]] = [
        "image",
        "patient",
        "content",
        "perceptual",
    ]
    """Levels at which an overlap stops the run; the others are only listed in ``overlaps.csv``."""
    duplicate_bits: Annotated[int, Field(ge=0, le=15)] | None = 10
    """Like ``index.duplicate_bits``, but also across datasets."""


class Crop(Block):
    """Crop each photograph to its field of view and scale it to a square."""

    rule: Literal["disc", "o_O", "graham", "clpi"] = "disc"
    """disc: fit a circle to the field of view; o_O: the published bounding box, bit for bit;
    graham: rescaled by radius, local mean subtracted (Kaggle 2015 first place); clpi: centre square, local
    median subtracted."""
    size: Annotated[int, Field(ge=32, le=2048)] = 256
    """Side of a stored crop in pixels (512 in the papers)."""
    aspect: Literal["pad", "squash"] = "pad"
    """pad: keep the aspect ratio, with black borders; squash: stretch to the square as published;
    graham and clpi keep the aspect ratio in either case."""
    format: Literal["raw", "png", "jpeg"] = "raw"
    """raw: memory-mapped pixels, fastest; png: lossless, about half the disk; jpeg: a tenth of it."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of stored crops, without colour subsampling; other formats ignore it."""
    max_failed_fraction: Fraction = 0.1
    """Stop only when more than this share of the photographs cannot be read."""

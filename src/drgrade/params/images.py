"""Blocks of the stages from raw photographs to crops: ``workflow/rules/images.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Block, Fraction, Name, Seed

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
    """Trains the lesion detector, where a pretraining looks at boxes: needs lesion masks. Heat maps are
    scored on its masks, where it has any."""
    pretrain: Name = "demo"
    """Its photographs are searched for lesions and used, without grades, for pretraining."""
    grade: Name = "demo"
    """Trains and tests the graders: needs grades."""
    external: list[Name] = []
    """Test the graders once more, as they are, on all graded photographs of these."""


class Demo(Block):
    """The synthetic dataset."""

    patients: Annotated[int, Field(ge=5)] = 50
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
    images are also 0.8 as wide and show the whole field."""


class Download(Block):
    """Fetch, verify or generate the raw photographs."""

    demo: Demo = Demo()
    demo_site: Demo = Demo(patients=16, segmentation=0, seed=8, camera_shift=1.0)
    """A second synthetic hospital with another camera, for external tests."""


class Index(Block):
    """List the photographs, join their labels and split them by patient."""

    scheme: Scheme = "holdout"
    """official: the dataset's own split, its training part divided into train and val, without copies;
    holdout: train, val and test drawn here; kfold: every photograph is tested once, out of fold;
    file: as ``datasets.<name>.split_file`` says."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of patients for validation (of the training part under ``official``; unused under ``kfold``). 0
    under ``official``: nothing validates, what the dataset itself keeps for validation is tested."""
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
    """Find photographs and patients that are trained on in one dataset and tested on in another."""

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

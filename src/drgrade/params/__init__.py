"""The one definition of ``params.yaml``: every key, its type, range, default and meaning.

``load`` checks a file and fills in defaults; ``json_schema`` is what editors complete against
(``workflow/schemas/params.schema.json``). It has only settings that affect results: cores, devices and
tracking servers belong to the profile and the environment. Modules are named after the rule files that
use their blocks.
"""

from drgrade.params.block import Augment, TestTime
from drgrade.params.grading import BY_GRADER, GRADERS, Encoded, Experiment, Features, Grade, Shared
from drgrade.params.images import Crop, Dataset, Demo, Download, Index, Overlaps, Roles, Scheme
from drgrade.params.lesions import (
    Detector,
    LesionBoxes,
    LesionMasks,
    LesionMetrics,
    Lesions,
    Patches,
    Segmentation,
    SegmentationMetrics,
    Source,
)
from drgrade.params.model import Params
from drgrade.params.pretraining import (
    CONTRASTIVE,
    Contrastive,
    LesionContrastive,
    LocalToGlobal,
    Pretraining,
    SimCLR,
)
from drgrade.params.read import check, check_block, json_schema, load, read_yaml, wrong
from drgrade.params.results import Calibrate, Evaluate, Explanation, Report, Robustness
from drgrade.params.start import StartFrom, parse_start
from drgrade.params.training import Sampling, Schedule

__all__ = [
    "BY_GRADER", "CONTRASTIVE", "GRADERS", "Augment", "Calibrate", "Contrastive", "Crop", "Dataset", "Demo",
    "Detector", "Download", "Encoded", "Evaluate", "Experiment", "Explanation", "Features", "Grade", "Index",
    "LesionBoxes", "LesionContrastive", "LesionMasks", "LesionMetrics", "Lesions", "LocalToGlobal",
    "Overlaps", "Params", "Patches", "Pretraining", "Report", "Robustness", "Roles", "Sampling", "Schedule",
    "Scheme", "Segmentation", "SegmentationMetrics", "Shared", "SimCLR", "Source", "StartFrom", "TestTime",
    "check", "check_block", "json_schema", "load", "parse_start", "read_yaml", "wrong",
]  # fmt: skip

"""Checked params, the paths of results, and which sources each stage is made of."""

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from drgrade.errors import UserError
from drgrade.estimate import estimate
from drgrade.params import check

# files in params/ are complete: with --configfile, params.yaml must not shine through
if not workflow.overwrite_configfiles:

    configfile: "params.yaml"


try:
    PARAMS = check(
        json.loads(json.dumps(config)),
        ", ".join(map(str, workflow.overwrite_configfiles)) or "params.yaml",
    )
except UserError as error:
    sys.exit(f"drgrade: error: {error}")

RESOLVED = PARAMS.model_dump()
LESIONS, PRETRAIN, GRADE = (
    PARAMS.roles.lesions,
    PARAMS.roles.pretrain,
    PARAMS.roles.grade,
)
EXPERIMENTS = list(PARAMS.experiments)
METHODS = [name for name in type(PARAMS.pretrain).model_fields]

# tells every job which parent run it belongs to in MLflow
os.environ["DRGRADE_PARENT"] = json.dumps(RESOLVED, sort_keys=True)

# Snakemake does not see imported modules: a change of these files reruns the stage.
# dvc.yaml lists the same ones; tests/pipeline/test_sources.py holds both to the real imports.
TABLES = ["errors.py", "files.py", "schema.py"]
DATA = [*TABLES, "plugins.py", "seeding.py", "data"]
TRAINING = [*TABLES, "plugins.py", "seeding.py", "encoders.py", "training.py"]
SOURCES = {
    "download": DATA,
    "index": DATA,
    "crop": [*DATA, "images"],
    "lesion_boxes": [*DATA, "images", "lesions"],
    "detector": [*DATA, "images", "lesions", "encoders.py"],
    "lesions": [*DATA, "images", "lesions", "encoders.py"],
    "patches": [*DATA, "images", "lesions"],
    "pretrain": [*TRAINING, "images", "pretrain"],
    "grade": [*TRAINING, "data", "images", "grading", "evaluate"],
    "evaluate": [*TABLES, "seeding.py", "evaluate", "report"],
    "explain": [*TRAINING, "data", "images", "grading", "explain"],
    "report": [*DATA, "images", "report"],
}


def sources(stage):
    """The source files of a stage, folders opened."""
    paths = [Path("src/drgrade") / name for name in SOURCES[stage]]
    return [
        str(path)
        for item in paths
        for path in (sorted(item.glob("*.py")) if item.is_dir() else [item])
    ]


def block(*keys):
    """A block of the params as JSON: what a verb gets, and what Snakemake compares for reruns."""
    values = RESOLVED
    for key in keys:
        values = values[key]
    return json.dumps(values, sort_keys=True)


def at(dataset, path):
    """Where a stage of a dataset writes."""
    return f"results/{dataset}/{path}"


def start_weights(wildcards):
    """The pretrained encoder an experiment starts from, or its weights file, or nothing."""
    start = PARAMS.experiments[wildcards.experiment].start
    if start in METHODS:
        return [at(PRETRAIN, f"pretrain/{start}/encoder.json")]
    return [] if start in ("random", "imagenet") else [start]


def weights_option(wildcards):
    """The same as an option of the verb."""
    start = PARAMS.experiments[wildcards.experiment].start
    if start not in METHODS:
        return ""
    return "--weights " + at(PRETRAIN, f"pretrain/{start}/weights")


wildcard_constraints:
    dataset="|".join(PARAMS.datasets),
    experiment="|".join(EXPERIMENTS),
    method="|".join(METHODS),


onstart:
    for line in estimate(PARAMS, workflow.cores):
        print(line, file=sys.stderr)

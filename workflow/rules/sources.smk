"""Which source files each stage is made of: Snakemake does not see imported modules.

An edit of one of these files reruns the stage; only the graders, pretraining methods, explainers and datasets
that the params name count.
"""

from drgrade.sources import stage_sources

DATA = [f"drgrade.data.{name}" for name in PARAMS.datasets]
METHODS_USED = sorted({block["method"] for block in RESOLVED["pretrain"].values()})
GRADERS_USED = sorted({block["grader"] for block in RESOLVED["experiments"].values()})
EXPLAINERS_USED = sorted(
    {block["method"] for block in RESOLVED["explanations"].values()}
)
GRADER_MODULES = [f"drgrade.grading.{name}" for name in GRADERS_USED]
PARTS = {
    "download": DATA,
    "index": DATA,
    "lesion_boxes": DATA,
    "lesion_metrics": DATA,
    "patches": DATA,
    "pretrain": [f"drgrade.pretrain.{name}" for name in METHODS_USED],
    "explain": [
        *DATA,
        *GRADER_MODULES,
        *(f"drgrade.explain.{name}" for name in EXPLAINERS_USED),
    ],
}
"""Modules that stages find by name."""


def sources(stage):
    """The source files of a stage."""
    return list(map(os.path.relpath, stage_sources(stage, *PARTS.get(stage, []))))


def grader_sources(wildcards):
    """The source files of the stage grade with the grader of one experiment."""
    grader = PARAMS.experiments[wildcards.experiment].grader
    found = stage_sources("grade", f"drgrade.grading.{grader}")
    return list(map(os.path.relpath, found))

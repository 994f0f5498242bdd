"""What each stage is made of: Snakemake does not see imported modules.

A change of a stage's code (not of its comments), or of a library that it imports, reruns it; of graders,
pretraining methods, explainers and datasets only those that a job uses count.
"""

from drgrade import sources
from drgrade.lesions import configs


def software(stage, *parts):
    """What a stage is made of, with modules that it finds by name."""
    return or_exit(sources.software, stage, *parts)


def dataset_software(stage):
    """What a stage is made of with the reader of its dataset, by wildcard."""
    return lambda wildcards: software(stage, f"drgrade.data.{wildcards.dataset}")


def grader_of(experiment):
    """The module of an experiment's grader."""
    return f"drgrade.grading.{PARAMS.experiments[experiment].grader}"


def grade_software(wildcards):
    """What the stage grade is made of with the graders of an experiment and of those it builds on."""
    names = [wildcards.experiment, *PARAMS.built_on(wildcards.experiment)]
    return software("grade", *sorted(set(map(grader_of, names))))


def features_software(wildcards):
    """What the stage features is made of with the grader whose features are stored."""
    return software(
        "features", grader_of(PARAMS.features[wildcards.features].experiment)
    )


def pretrain_software(wildcards):
    """What the stage pretrain is made of with the method of one encoder."""
    method = PARAMS.pretrain[wildcards.encoder].method
    return software("pretrain", f"drgrade.pretrain.{method}")


def explain_software(wildcards):
    """What the stage explain is made of with its method, and the graders it explains."""
    asked = PARAMS.explanations[wildcards.explanation]
    parts = (f"drgrade.data.{name}" for name in dict.fromkeys((LESIONS, GRADE)))
    return software(
        "explain",
        *parts,
        f"drgrade.explain.{asked.method}",
        *sorted(set(map(grader_of, asked.experiments))),
    )


def robustness_software():
    """What the stage robustness is made of with the graders it tests and those that they build on."""
    sets = [one for name in ROBUST for one in PARAMS.feature_sets(name)]
    names = {
        *ROBUST,
        *(one for name in ROBUST for one in PARAMS.experiments[name].members),
        *(PARAMS.features[one].experiment for one in sets),
    }
    return software("robustness", *sorted(set(map(grader_of, names))))


DETECTOR_CONFIG = or_exit(configs.config_digest, PARAMS.detector.config)
BACKBONES = or_exit(configs.backbones, PARAMS.detector.config)

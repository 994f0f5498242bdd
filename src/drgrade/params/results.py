"""Blocks of the stages for evaluation, heat maps and the report: ``workflow/rules/results.smk``."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from drgrade.params.block import Block, Name, Seed


class Calibrate(Block):
    """Fit what turns predictions into decisions, on validation photographs."""

    method: Literal["temperature", "isotonic", "none"] = "temperature"
    """Calibration of the probabilities: a temperature (one number, from 15 validation photographs on),
    isotonic regression (any non-decreasing curve, from 100 on), or none. With too few photographs it is
    none."""
    point: Literal["specificity_87", "specificity_95", "sensitivity_87", "sensitivity_95", "youden"] = (
        "specificity_87"
    )
    """Operating point at which predictions call a photograph referable: the highest sensitivity at a
    specificity of at least 0.87 or 0.95, the highest specificity at such a sensitivity, or the highest sum of
    both."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest probability that a set of grades misses the true grade."""
    score: Literal["ordinal", "lac"] = "ordinal"
    """Kind of these sets: runs of neighbouring grades, or the smallest sets, which can have gaps."""
    max_grades: Annotated[int, Field(ge=1, le=5)] = 2
    """A photograph whose set holds more grades than this is left to a clinician."""


class Evaluate(Block):
    """Evaluate predictions and build the leaderboard."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of patients, for 95 % intervals and p-values."""
    seed: Seed = 1
    """Seed of the bootstrap."""


NEEDS: dict[str, Literal["boxes", "segmentation"]] = {
    "lesion_boxes": "boxes",
    "segmentation": "segmentation",
}
"""Methods that show lesions and explain no grader: what each reads of the lesion stages."""


class Explanation(Block):
    """Heat maps of the models of one or more experiments, or of lesions, with scores."""

    method: str = "cam"
    """A module of ``drgrade.explain``: ``cam`` and ``layercam`` for any convolutional network, each image on
    its own colour scale; ``gmsv``, the evidence maps of DeepMT-DR, likewise; ``attention`` for vision
    transformers, likewise; ``ram`` for a linear head on mean features, in grade units on one colour scale;
    ``lesion_maps`` for ``clpi`` and ``deepmt``: the probability of a lesion by the grader's own lesion
    network. Without a grader: ``lesion_boxes``, scores of the lesion detector; ``segmentation``, the
    probability of any lesion by the stage segmentation. See docs/explanations.md."""
    experiment: Name = "lesion_contrastive"
    """Experiment whose model (of its first seed and fold) is explained. No effect, like ``also``, with
    ``lesion_boxes`` and ``segmentation``."""
    also: list[Name] = []
    """Further experiments, such as networks of other input sizes: all maps are averaged."""
    scale: Literal["common", "each"] = "common"
    """``common``: maps of ``ram`` keep their unit, and all images share one colour scale. ``each``: every map
    of every image is stretched to 0-1 before averaging, as published for RAM; this hides how severe a
    photograph is. No effect with other methods: ``cam``, ``layercam``, ``gmsv`` and ``attention`` always
    stretch their maps; those that show lesions never do."""
    images: Annotated[int, Field(ge=1)] = 6
    """Number of photographs with masks, and of graded test photographs."""
    faithfulness: Annotated[int, Field(ge=0)] = 4
    """Number of these photographs, of the test split first, on which insertion and deletion are measured: how
    the grade changes as the hottest pixels come or go. Each costs as much as grading 122 photographs; 0: not
    measured. No effect with ``lesion_boxes`` and ``segmentation``."""

    @property
    def needs(self) -> Literal["networks", "boxes", "segmentation"]:
        """What the method explains: networks of graders, or results of a lesion stage."""
        return NEEDS.get(self.method, "networks")

    @property
    def experiments(self) -> list[str]:
        """All experiments whose models are explained, the first one first; none with lesion methods."""
        return [self.experiment, *self.also] if self.needs == "networks" else []


CorruptionName = Literal["blur", "jpeg", "darker", "brighter", "colour_shift", "resolution"]


class Robustness(Block):
    """Grade corrupted copies of the test photographs, at rising severity."""

    experiments: list[Name] = []
    """Experiments whose model (of its first seed and fold) is tested; none: the stage does not run."""
    corruptions: Annotated[list[CorruptionName], Field(min_length=1)] = [
        "blur", "jpeg", "darker", "brighter", "colour_shift", "resolution",
    ]  # fmt: skip
    """Kinds of corruption; each is applied alone."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)] = [1, 3, 5]
    """Severities, from 1 to 5; docs/robustness.md says what they are."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of patients, for 95 % intervals."""
    seed: Seed = 1
    """Seed of the bootstrap."""

    @field_validator("experiments", "corruptions", "severities")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise ValueError(f"{twice[0]} stands twice; name each once")
        return values


class Report(Block):
    """Figures, model cards and the HTML report."""

    sheet: Annotated[int, Field(ge=4)] = 24
    """Number of crops on the contact sheet."""

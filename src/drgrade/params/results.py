"""Blocks of the stages for evaluation, heat maps and the report: ``workflow/rules/results.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Block, Name, Seed


class Evaluate(Block):
    """Evaluate predictions and build the leaderboard."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples of patients, for 95 % intervals and p-values."""
    seed: Seed = 1
    """Seed of the bootstrap."""


class Explanation(Block):
    """Heat maps of the models of one or more experiments, scored against lesion masks."""

    method: str = "cam"
    """A module of ``drgrade.explain``: ``cam`` for any convolutional network, each image on its own colour
    scale; ``gmsv``, the evidence maps of DeepMT-DR, likewise; ``ram`` for a linear head on mean features, in
    grade units on one colour scale; ``lesion_maps`` for ``clpi`` and ``deepmt``: the probability of a lesion
    by the grader's own lesion network."""
    experiment: Name = "lesion_contrastive"
    """Experiment whose model (of its first seed and fold) is explained."""
    also: list[Name] = []
    """Further experiments, such as networks of other input sizes: all maps are averaged."""
    scale: Literal["common", "each"] = "common"
    """``common``: maps of ``ram`` keep their unit, and all images share one colour scale. ``each``: every map
    of every image is stretched to 0-1 before averaging, as published for RAM; this hides how severe a
    photograph is. No effect with other methods: ``cam`` and ``gmsv`` always stretch their maps,
    ``lesion_maps`` never does."""
    images: Annotated[int, Field(ge=1)] = 6
    """Number of photographs with masks, and of graded test photographs."""

    @property
    def experiments(self) -> list[str]:
        """All experiments whose models are explained, the first one first."""
        return [self.experiment, *self.also]


class Report(Block):
    """Figures, model cards and the HTML report."""

    sheet: Annotated[int, Field(ge=4)] = 24
    """Number of crops on the contact sheet."""

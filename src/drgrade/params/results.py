"""Blocks of the stages for evaluation, heat maps and the report: ``workflow/rules/results.smk``."""

from typing import Annotated

from pydantic import Field

from drgrade.params.block import Block, Name, Seed


class Evaluate(Block):
    """Evaluate predictions and build the leaderboard."""

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of patients for the 95 % confidence intervals."""
    seed: Seed = 1
    """Seed of the bootstrap."""


class Explanation(Block):
    """Heat maps of one experiment's model, scored against lesion masks."""

    method: str = "cam"
    """A module of ``drgrade.explain``."""
    experiment: Name = "lesion_contrastive"
    """Experiment whose model (of its first seed and fold) is explained."""
    images: Annotated[int, Field(ge=1)] = 6
    """Number of photographs with masks, and of graded test photographs."""


class Report(Block):
    """Figures, model cards and the HTML report."""

    sheet: Annotated[int, Field(ge=4)] = 24
    """Number of crops on the contact sheet."""

"""Blocks of the stages that measure and show: ``workflow/rules/results.smk``."""

from typing import Annotated

from pydantic import Field

from drgrade.params.block import Block, Name, Seed


class Evaluate(Block):
    """Measure predictions; the leaderboard."""

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of patients for the 95 % intervals."""
    seed: Seed = 1
    """Seed of the resamples."""


class Explanation(Block):
    """Heat maps of one experiment's model over photographs, scored against lesion masks."""

    method: str = "cam"
    """A module of ``drgrade.explain``."""
    experiment: Name = "lesion_contrastive"
    """Whose model is explained (its first seed and fold)."""
    images: Annotated[int, Field(ge=1)] = 6
    """Photographs with masks, and as many graded test photographs."""


class Report(Block):
    """Figures, model cards and the page that shows them."""

    sheet: Annotated[int, Field(ge=4)] = 24
    """Crops on the contact sheet."""

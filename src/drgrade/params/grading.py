"""The blocks ``grade`` and ``experiments``: ``workflow/rules/grading.smk``.

Each grader has a params model of its own, a subclass of :class:`Experiment` that stands in the grader's
module. Models that also derive from :class:`Shared` or :class:`Grade` take the values of the block ``grade``
for those keys, unless the experiment sets them itself.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from drgrade.params.block import Augment, Block, Name, Seed
from drgrade.params.by_name import ByName
from drgrade.plugins import Registry

GRADERS = Registry("drgrade.grading")
"""Graders by name: modules of ``drgrade.grading``."""
BY_GRADER = ByName(GRADERS, "grader")
"""Annotation of :class:`Experiment`: validate by the params model of the grader that it names."""


class Shared(Block):
    """Keys of the block ``grade`` that every grader with an encoder uses."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of the network's input; crops are scaled to it once."""
    select: Literal["best", "last"] = "best"
    """Keep what is best by validation QWK, or the last epoch (needs no validation set)."""


class Grade(Shared):
    """How graders learn; shared by all experiments, each of which may override any key."""

    epochs: Annotated[int, Field(ge=1)] = 6
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Photographs in memory at a time, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose mean gradient makes a step; BatchNorm still sees one at a time."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights over the steps, such as 0.999: what is validated and kept is
    the average. Null: the weights themselves."""
    compile: bool = False
    """Run the network through torch.compile: a wait at the start, other last digits. Needs a C++ compiler."""
    augment: Augment = Augment()


class Experiment(Block):
    """One row of the leaderboard: what graders of every kind have. Each grader's module adds its own keys."""

    grader: Name = "finetune"
    """A module of ``drgrade.grading``: majority, finetune, linear, knn, ..."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose grades are used; small fractions lie inside larger ones."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """One training for each."""
    members: list[Name] = []
    """Experiments whose trained models this grader builds on, each with the same seed and fold."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        again = {seed for seed in seeds if seeds.count(seed) > 1}
        if again:
            raise ValueError(f"seed {min(again)} stands twice; each is one training, so leave one out")
        return seeds

    @classmethod
    def shared(cls) -> set[str]:
        """Keys whose values come from the block ``grade`` unless the experiment sets them."""
        for block in (Grade, Shared):
            if issubclass(cls, block):
                return set(block.model_fields)
        return set()

    def over(self, grade: Grade) -> Self:
        """This experiment with the values of the block ``grade`` for the shared keys it does not set."""
        common = grade.model_dump(include=self.shared())
        return self.model_validate(_over(common, self.written()))

    def written(self) -> dict[str, Any]:
        """As it stands in a file: shared keys only where they are set, others in full."""
        unset = self.shared() - self.model_fields_set | ({"members"} if not self.members else set())
        values = self.model_dump(exclude=unset)
        for key in self.shared() & self.model_fields_set:
            if isinstance(block := getattr(self, key), Block):  # the rest of it is that of ``grade``
                values[key] = block.model_dump(exclude_unset=True)
        return values


class Encoded(Experiment, Shared):
    """An experiment whose grader has an encoder."""

    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone."""
    start: str = "imagenet"
    """random, imagenet, a name in ``pretrain``, experiment:NAME (that experiment's model of the same seed and
    fold), or a weights file."""


def _over(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``values`` with those of ``other`` in their place, blocks within blocks too."""
    merged = dict(values)
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

"""The blocks ``grade`` and ``experiments``: ``workflow/rules/grading.smk``.

Each grader has its own params model, a subclass of :class:`Experiment` in the grader's module. Models that
also derive from :class:`Shared` or :class:`Grade` take the values of those keys from the block ``grade``,
unless the experiment sets them itself.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from drgrade.params.block import Augment, Block, Name, Seed
from drgrade.params.by_name import ByName
from drgrade.plugins import Registry

GRADERS = Registry("drgrade.grading")
"""Graders by name: modules of ``drgrade.grading``."""
BY_GRADER = ByName(GRADERS, "grader")
"""Annotation of :class:`Experiment`: validate with the params model of the named grader."""


class Shared(Block):
    """Keys of the block ``grade`` that every grader with an encoder uses."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of the network's input in pixels; crops are scaled to it once."""
    select: Literal["best", "last"] = "best"
    """Keep the weights of the epoch with the best validation QWK, or of the last epoch (needs no validation
    set)."""


class Grade(Shared):
    """Training of graders; shared by all experiments, each of which may override any key."""

    epochs: Annotated[int, Field(ge=1)] = 6
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Photographs per forward pass, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per optimiser step (gradient accumulation); BatchNorm uses the statistics of single batches."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak learning rate of AdamW in a one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is validated and
    kept. Null: no average."""
    compile: bool = False
    """Use torch.compile: slow start, results differ in the last digits. Needs a C++ compiler."""
    augment: Augment = Augment()


class Experiment(Block):
    """One row of the leaderboard: keys of all graders. Each grader's module adds its own keys."""

    grader: Name = "finetune"
    """A module of ``drgrade.grading``: majority, finetune, linear, knn, ..."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose grades are used; smaller fractions are subsets of larger ones."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Random seeds; one training for each."""
    members: list[Name] = []
    """Experiments whose trained models this grader uses, each with the same seed and fold."""

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
        """Return the values as in a params file: shared keys only if they are set, others in full."""
        unset = self.shared() - self.model_fields_set | ({"members"} if not self.members else set())
        values = self.model_dump(exclude=unset)
        for key in self.shared() & self.model_fields_set:
            if isinstance(block := getattr(self, key), Block):  # unset keys come from ``grade``
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
    """Return ``values`` updated with those of ``other``, nested blocks recursively."""
    merged = dict(values)
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

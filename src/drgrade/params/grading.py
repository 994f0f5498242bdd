"""The blocks ``grade`` and ``experiments``: ``workflow/rules/grading.smk``."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer

from drgrade.params.block import Augment, Block, Name, Seed


class Knn(Block):
    """Weighted votes of the nearest training photographs in the space of a frozen encoder."""

    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [5, 10, 15, 20]
    """Neighbours that vote; the best of several by validation QWK, the first where nothing validates."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""


class Linear(Block):
    """A linear regression of the grade on the features of a frozen encoder."""

    lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.0003, 0.001, 0.003, 0.01]
    """Learning rates of Adam; the best of several by validation QWK, the first where nothing validates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of all weights."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the features."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Features a step."""


class Grade(Block):
    """How graders learn; shared by all experiments but for what they set apart."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of the network's input; crops are scaled to it once."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Photographs in memory at a time, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose mean gradient makes a step; BatchNorm still sees one at a time."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    select: Literal["best", "last"] = "best"
    """Keep the epoch with the best validation QWK, or the last one (needs no validation set)."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights over the steps, such as 0.999: what is validated and kept is
    the average. Null: the weights themselves."""
    compile: bool = False
    """Run the network through torch.compile: a wait at the start, other last digits. Needs a C++ compiler."""
    augment: Augment = Augment()
    knn: Knn = Knn()
    linear: Linear = Linear()


class Experiment(Block):
    """One row of the leaderboard."""

    grader: Name = "finetune"
    """A module of ``drgrade.grading``: majority, finetune, ..."""
    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone; ignored by graders without one."""
    start: str = "imagenet"
    """random, imagenet, a name in ``pretrain``, or a weights file."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training patients whose grades are used; small fractions lie inside larger ones."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """One training for each."""
    grade: Grade = Grade()
    """Keys of the block ``grade`` that are other than there, such as {input_size: 512, lr: 0.0003}."""

    def graded_by(self, shared: Grade) -> Grade:
        """The block ``grade`` with the keys that this experiment sets itself in their place."""
        return Grade.model_validate(_over(shared.model_dump(), self.grade.model_dump(exclude_unset=True)))

    @field_serializer("grade")
    def _only_what_differs(self, block: Grade) -> dict[str, Any]:
        return block.model_dump(exclude_unset=True)


def _over(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``values`` with those of ``other`` in their place, blocks within blocks too."""
    merged = dict(values)
    for key, value in other.items():
        merged[key] = _over(merged[key], value) if isinstance(value, dict) else value
    return merged

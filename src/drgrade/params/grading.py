"""The blocks ``grade`` and ``experiments``: ``workflow/rules/grading.smk``.

Each grader has its own params model, a subclass of :class:`Experiment` in the grader's module. Models that
also derive from :class:`Shared` or :class:`Grade` take the values of those keys from the block ``grade``,
unless the experiment sets them itself.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from drgrade.params.block import Augment, Block, Name, Seed, TestTime
from drgrade.params.by_name import ByName
from drgrade.params.training import ClassWeights, Decay, Loss, Optimizer, Sampling, Schedule
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
    augment: Augment = Augment()
    """Random augmentation of training photographs, and the ranges of test-time transforms."""
    test_time: TestTime = TestTime()
    """Test-time augmentation."""


class Grade(Shared):
    """Training of graders; shared by all experiments, each of which may override any key."""

    epochs: Annotated[int, Field(ge=1)] = 6
    """Passes over the training photographs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Photographs per forward pass, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per optimiser step (gradient accumulation); BatchNorm uses the statistics of single batches."""
    loss: Loss = "mse"
    """mse, mae, smooth_l1: one output, the grade. cross_entropy, focal, soft_qwk: five classes. coral, corn:
    ordinal, whether the grade is above 0, 1, 2, 3."""
    class_weights: ClassWeights = "none"
    """Weights of the grades in the loss. balance: largest count / count; dynamic: the same, fading to 1; or
    five numbers. Do not combine them with ``sampling``."""
    class_weights_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor per epoch of the balanced part in dynamic; 0: balanced in the first epoch only."""
    sampling: Sampling = Sampling()
    """How often photographs of each grade are drawn in an epoch."""
    optimizer: Optimizer = "adamw"
    """adamw, sgd (Nesterov) or adam; adam with a large weight decay can collapse to grade 0."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Peak learning rate."""
    schedule: Schedule = Schedule()
    """Learning rate over the epochs."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay: decoupled with adamw, added to the gradient with sgd and adam."""
    decay: Decay = "all"
    """Parameters that weight decay applies to: all, or weights only, without biases and norms."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer of the encoder to the one before it, such as 0.75 for
    vision transformers; the head has the full rate. Null: the same rate for all."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; larger ones are scaled down. Null: not clipped."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is validated and
    kept. Null: no average."""
    compile: bool = False
    """Use torch.compile: slow start, results differ in the last digits. Needs a C++ compiler."""
    normalisation: Literal["encoder", "eyepacs", "train"] = "encoder"
    """Channel means and standard deviations of the input: those of the encoder's weights, those that Huang et
    al. measured on EyePACS, or those of the training photographs."""
    checkpoints: list[Literal["best", "best_mse", "last"]] = []
    """Weights to save beside the selected ones, for ``features``: of the epochs with the best validation QWK
    and MSE, and of the last."""


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
    out_of_fold: Annotated[int, Field(ge=0, le=20)] = 0
    """Number of further trainings for graders that are fitted on this one's features: each leaves out one
    part of the training patients, whose features then come from a network that has not seen them. 0: none."""

    @field_validator("out_of_fold")
    @classmethod
    def _several(cls, count: int) -> int:
        if count == 1:
            raise ValueError("one part would be all training patients; take 2 or more, or 0 for none")
        return count

    @classmethod
    def preset_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe: values of keys that ``values`` lacks; they override the block ``grade``."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        return _over(cls.preset_values(values), values) if isinstance(values, dict) else values

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
        unset = self.shared() - self.model_fields_set
        unset |= {key for key in ("members", "out_of_fold") if not getattr(self, key)}
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

    def encoder_options(self) -> dict[str, Any]:
        """Options of the encoder for timm."""
        return {}

    def can_start_from(self, encoder: str) -> bool:
        """Whether some of the weights of another encoder, of a different architecture, can be used."""
        return False


class Features(TestTime):
    """A feature set: what the network of an experiment computes of all photographs, for ``blend`` and others.

    Means and standard deviations are over the transforms.
    """

    experiment: Name
    """Experiment whose models are used, of all its seeds and folds. With ``out_of_fold`` a training
    photograph's features come from the model that has not seen it."""
    checkpoint: Literal["selected", "best", "best_mse", "last"] = "selected"
    """The weights: the selected ones, or one of the experiment's ``checkpoints``."""
    out_of_fold: bool = True
    """Use the networks that left out a part, where the experiment has ``out_of_fold``. False: only the
    network that was trained on all, and so has seen the training photographs, as published."""


NOT_IN_RECIPES = {"select", "test_time", "compile", "checkpoints"}
"""Keys of the block ``grade`` that do not change how a network is trained."""


def recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of training: those of ``values``, the others at their defaults, whatever ``grade`` says.

    Args:
        values: keys of :class:`Grade` that differ from its defaults; nested blocks may be given in part.
    """
    return _over(Grade().model_dump(exclude=NOT_IN_RECIPES), dict(values))


def _over(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` updated with those of ``other``, nested blocks recursively."""
    merged = dict(values)
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

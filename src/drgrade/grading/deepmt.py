"""DeepMT-DR (Wang et al., AAAI 2021): super-resolution, lesion segmentation and grading in one network.

A photograph at low resolution is enlarged, its lesions are segmented, and both together are graded. There are
three phases: super-resolution and segmentation; grading alone; all together, where super-resolution also
learns what helps the other two tasks. The networks are in :mod:`drgrade.networks.deepmt` and
:mod:`.deepmt_network`; the training is in :mod:`.deepmt_training`, with :mod:`.deepmt_phases`,
:mod:`.deepmt_batches`, :mod:`.deepmt_losses`, :mod:`.deepmt_pseudo_masks` and :mod:`.deepmt_psnr`.

Crops are high-resolution images: ``crop.size`` is ``input_size`` times ``scale``. The low-resolution image is
made from them by area averaging, also for prediction.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Explainable, Job
from drgrade.grading.finetune import Finetune
from drgrade.params import Crop, Encoded, Experiment
from drgrade.params.block import Block, Fraction
from drgrade.params.training import ClassWeights, Loss, Schedule

if TYPE_CHECKING:
    from drgrade.grading.deepmt_network import DeepMTNetwork
    from drgrade.images.preprocess import Preprocess

HIGH_SIZE = 1024
"""Published side of the high-resolution images."""
MULTIPLE = 16
"""Sides of high-resolution images must be multiples of this: segmentation halves them four times."""

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Task = Literal["none", "fixed", "joint"]
"""How a network takes part: not at all; trained in the first phase, then fixed; or trained again."""


class Phase(Block):
    """One phase of the training. Epochs and batch sizes are not published in the paper."""

    epochs: Count
    """Passes over the graded training photographs."""
    batch_size: Count
    """Graded photographs of a batch. In ``restoration`` and ``joint`` one with drawn lesions joins each."""
    accumulate: Count = 1
    """Batches per optimiser step."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate."""


class LossWeights(Block):
    """Weights of the losses; published, except where a comment says otherwise."""

    image: Weight = 1.0
    """Absolute error of the enlarged image."""
    variation: Weight = 1e-6
    """Sum of squared differences of neighbouring pixels of the enlarged image."""
    segmentation: Weight = 1.0
    """Dice loss of photographs with drawn lesions."""
    segmentation_aware: Weight = 10.0
    """Difference of the lesions in the enlarged and in the original image, in the phase ``restoration``."""
    joint_segmentation_aware: Weight = 1.0
    """The same in the phase ``joint``."""
    grading_aware: Weight = 10.0
    """Difference of the evidence maps of the enlarged and the original image."""
    grade: Weight = 1.0
    """Loss of the grade, see ``grade_loss``."""
    pseudo: Weight = 0.1
    """Difference of lesions and pseudo masks in photographs without drawn lesions. None is published."""


class PseudoMasks(Block):
    """Semi-supervised segmentation: evidence maps above the threshold are masks of graded photographs."""

    use: bool = True
    """Whether photographs without drawn lesions train the segmentation in the phase ``joint``."""
    ramp_epochs: Annotated[int, Field(ge=0)] = 2
    """Epochs over which their weight rises linearly to ``loss_weights.pseudo``."""
    teacher_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """The maps come from an exponential moving average of the weights with this decay; 0: from the network
    itself, as published."""


class Params(Encoded):
    """Enlarge, segment and grade photographs; ``input_size`` is the side of the low-resolution image."""

    grader: Literal["deepmt"] = "deepmt"
    """The module of ``drgrade.grading``."""
    encoder: str = "resnet18.tv_in1k"
    """Grading network: a convolutional timm backbone with four stages."""
    scale: Literal[2, 4, 8] = 4
    """Enlargement: ``crop.size`` / ``input_size``. Unless ``input_size`` is set, it is 1024 / ``scale``."""
    super_resolution: Task = "joint"
    """none: bicubic enlargement; fixed: trained in the phase ``restoration`` only; joint: in all phases but
    ``grading``."""
    segmentation: Task = "joint"
    """none: the grade depends on the image alone; fixed and joint: as above."""
    task_aware: Literal["none", "segmentation", "grading", "both"] = "both"
    """Which other tasks super-resolution learns for."""
    super_resolution_output: Literal["residual", "tanh"] = "residual"
    """residual: the network corrects the bicubic enlargement; tanh: it gives the image, as published."""
    super_resolution_width: Annotated[int, Field(ge=1)] = 32
    """Channels of the super-resolution network."""
    super_resolution_blocks: Annotated[int, Field(ge=0)] = 5
    """Its residual blocks."""
    segmentation_width: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Channels of the finest level of the segmentation network."""
    side_weights: Annotated[list[Weight], Field(min_length=5, max_length=5)] = [0.4, 0.2, 0.2, 1.0, 1.0]
    """Weights of the segmentation's side outputs, from coarse to fine; 0 for the last one, as published."""
    grids: Annotated[list[Count], Field(min_length=1)] = [4, 2, 1]
    """Cells a side of the grids of spatial pyramid pooling."""
    hidden: Count = 512
    """Units of the dense layer after the pyramid."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of these units that is left out at random in training."""
    grade_loss: Literal["distance", "published_distance"] | Loss = "distance"
    """distance: cross-entropy, weighted by 1 + the distance of the predicted grade; published_distance: by
    the distance, so 0 for correctly graded photographs; or a loss of ``grade.loss``."""
    class_weights: ClassWeights = "none"
    """Weights of the grades in the loss of the grade; the authors' code is close to balance."""
    loss_weights: LossWeights = LossWeights()
    """Weights of all losses."""
    threshold: Fraction = 0.5
    """Evidence from which on a pixel counts in the grading-aware loss and in pseudo masks."""
    softness: Annotated[float, Field(gt=0)] | None = 0.1
    """Width of the soft threshold of the grading-aware loss; null: a hard one as published, which has no
    gradient."""
    pseudo_masks: PseudoMasks = PseudoMasks()
    """Semi-supervised segmentation."""
    restoration: Phase = Phase(epochs=10, batch_size=2)
    """First phase: super-resolution and segmentation."""
    grading: Phase = Phase(epochs=10, batch_size=8)
    """Second phase: grading, with the other networks fixed."""
    joint: Phase = Phase(epochs=5, batch_size=1, lr=5e-5)
    """Third phase: all networks."""
    grade_from: Literal["enlarged", "original"] = "enlarged"
    """Images of the phase ``grading``: enlarged, as in prediction, or the original high-resolution ones."""
    joint_norms: Literal["running", "batch"] = "running"
    """Statistics of BatchNorm in the phase ``joint``, whose batches are small: those of the phases before, or
    of the batch."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """Added to the gradient, as in Adam; the published value is not known."""
    schedule: Schedule = Schedule(name="constant")
    """Learning rate over the epochs of each phase."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null: not clipped."""
    checkpointing: bool = True
    """Recompute activations of super-resolution and segmentation in the backward pass: less memory, more
    time, same results."""

    @classmethod
    def preset_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The published size: high-resolution images of 1024 px."""
        scale = values.get("scale", 4)
        return {"input_size": HIGH_SIZE // (scale if scale in (2, 4, 8) else 4)}

    @property
    def high_size(self) -> int:
        """Side of the high-resolution images in pixels."""
        return self.input_size * self.scale

    @property
    def passes(self) -> int:
        """Photographs that all phases go over for each graded one: pairs in ``restoration`` and ``joint``."""
        restores = self.super_resolution != "none" or self.segmentation != "none"
        return 2 * (restores * self.restoration.epochs + self.joint.epochs) + self.grading.epochs

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.high_size % MULTIPLE:
            raise ValueError(f"input_size times scale must be a multiple of {MULTIPLE}, not {self.high_size}")
        return self


@GRADERS.register("deepmt")
class DeepMT(Finetune):
    """Predicts, saves and loads as ``finetune`` does; keeps the epoch with the best validation QWK."""

    Params: ClassVar[type[Experiment]] = Params
    needs = frozenset({"masks"})
    network: "DeepMTNetwork"

    def __init__(self, params: Any, crop: Crop) -> None:
        super().__init__(params, crop)
        if crop.size != params.high_size:
            raise UserError(
                f"input_size: {params.input_size} times scale {params.scale} is {params.high_size}, but "
                f"crop.size is {crop.size}; set input_size to crop.size / scale"
            )

    def new_network(self, start: str) -> "DeepMTNetwork":
        """All networks with random weights, but the grading network's trunk from ``start``."""
        from drgrade.grading.deepmt_network import new_network

        return new_network(self.params, start)

    @cached_property
    def preprocess(self) -> "Preprocess":
        """Conversion of crops to low-resolution images in 0-1; the grading network normalises them itself."""
        from drgrade.images.preprocess import Preprocess
        from drgrade.images.statistics import PUBLISHED, Statistics

        return Preprocess.of(
            self.params.encoder, self.params.input_size, self.crop, test_time=self.params.test_time,
            augment=self.params.augment, statistics=Statistics((0.0,) * 3, (1.0,) * 3, PUBLISHED.axes),
        )  # fmt: skip

    def fit(self, job: Job) -> None:
        """Train in three phases; a training that was killed continues in the phase it was in."""
        from drgrade.grading.deepmt_training import train
        from drgrade.seeding import seed_everything

        seed_everything(job.seed, "networks")
        self.network = self.begin(job.start)  # type: ignore[assignment]
        train(self.network, self.params, job)

    def explainable(self) -> Explainable:
        """The grading network, with the other two before it; its output is the logits or the score."""
        from drgrade.grading.deepmt_network import Explained

        return Explainable(Explained(self.network), self.preprocess)

"""The networks of o_O, second in the Kaggle competition of 2015, trained as published.

Small plain networks regress the grade with squared error: SGD, steps of the learning rate, heavy geometric
and colour augmentation, and photographs of rare grades drawn more often at first. Networks for 256 and 512 px
start from the convolutions of the next smaller one (``start: experiment:NAME``), without which those for 512
px did not train. The networks are in :mod:`drgrade.networks.o_o`.

Unless an experiment sets them, ``input_size`` and all keys of training have the published values for its
encoder, not those of the block ``grade``. Deviations: the sampler's start weights come from the grades of the
training photographs, which gives the published ones on EyePACS; warped images are interpolated, not taken
from the nearest pixel.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from drgrade.errors import UserError
from drgrade.grading.base import GRADERS, Start
from drgrade.grading.finetune import Finetune
from drgrade.params import Encoded, Experiment, Grade
from drgrade.params.grading import recipe

if TYPE_CHECKING:
    from drgrade.grading.regression import GradedNetwork

log = logging.getLogger(__name__)

ZOOM = 1.15
"""Largest zoom of each axis; the smallest is 1 / ZOOM."""
TRANSLATE = {
    "128_4x4": 10 / 128, "128_5x5": 40 / 128, "256_4x4": 20 / 256, "256_5x5": 40 / 256,
    "512_4x4": 40 / 512, "512_5x5": 40 / 512,
}  # fmt: skip
"""Largest shift as a share of the side, by network."""
COLOUR = {"4x4": 0.25, "5x5": 0.5}
"""Standard deviation of the colour noise, by kernel size."""
BATCH = {"512_4x4": 48, "512_5x5": 32}
"""Photographs a batch where it is not 128."""


class Options(Encoded, Grade):
    """Keys that the graders with o_O's networks share."""

    start: str = "random"
    """random, or experiment:NAME: the convolutions of a network of the same kernel size are copied, of the
    same network all weights."""
    tied_biases: bool = False
    """One bias per channel in place of one per channel and position; any ``input_size`` then fits."""
    batch_norm: bool = False
    """Normalise the input and the activations."""
    leak: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Slope of the leaky ReLU below 0; with 0.33 also the 512 px networks train from random weights."""
    interpolate_biases: bool = False
    """Copy biases too when starting from another size, interpolated; otherwise they start anew."""

    @classmethod
    def preset_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The published training of the encoder."""
        return published(str(values.get("encoder", cls.model_fields["encoder"].default)))

    @field_validator("encoder")
    @classmethod
    def _of_o_o(cls, encoder: str) -> str:
        if not encoder.startswith("o_o_"):
            raise ValueError("must be a network of o_O, such as o_o_128_5x5; for others take finetune")
        return encoder

    @field_validator("loss")
    @classmethod
    def _of_one_output(cls, loss: str) -> str:
        if loss not in ("mse", "mae", "smooth_l1"):
            raise ValueError("these networks have one output; take mse, mae or smooth_l1")
        return loss

    def encoder_options(self) -> dict[str, Any]:
        """Options of the network for timm."""
        return {"tied_biases": self.tied_biases, "batch_norm": self.batch_norm, "leak": self.leak}

    def can_start_from(self, encoder: str) -> bool:
        """Whether it is a network of o_O whose first convolution has the same kernel and channels."""
        from drgrade.networks.o_o import ARCHITECTURES

        own, other = ARCHITECTURES.get(self.encoder), ARCHITECTURES.get(encoder)
        if own is None or other is None:
            return False
        return (own.layers[0].kernel, own.channels) == (other.layers[0].kernel, other.channels)


class Params(Options):
    """Train a network of o_O."""

    grader: Literal["o_o"] = "o_o"
    """The module of ``drgrade.grading``."""
    encoder: str = "o_o_128_5x5"
    """o_o_128_5x5, o_o_128_4x4, o_o_256_5x5, o_o_256_4x4, o_o_512_5x5 or o_o_512_4x4."""
    linear_output: bool = False
    """Leave out the final ReLU, under which the output can get stuck at 0."""


@GRADERS.register("o_o")
class OO(Finetune):
    """Trained, chosen and saved as ``finetune`` is."""

    Params: ClassVar[type[Experiment]] = Params

    def new_network(self, start: str) -> "GradedNetwork":
        """Encoder from ``start`` and a new maxout head."""
        from drgrade.encoders import create_encoder, width
        from drgrade.grading.regression import EncoderWithHead
        from drgrade.networks.o_o import MaxoutHead

        encoder = create_encoder(self.params.encoder, start, **self.params.encoder_options())
        head = MaxoutHead(width(encoder), linear_output=self.params.linear_output)
        return EncoderWithHead(encoder, self.params.loss, head=head)

    def begin(self, start: Start) -> "GradedNetwork":
        """The network with its start weights: all of another experiment's, or its convolutions."""
        from drgrade.checkpoints import read_tensors
        from drgrade.networks.o_o import copy_trunk

        if start.kind != "experiment" or start.path is None:
            return super().begin(start)
        network, tensors = self.new_network("random"), read_tensors(start.path)
        own = network.state_dict()
        if own.keys() == tensors.keys() and all(own[key].shape == tensors[key].shape for key in own):
            network.load_state_dict(tensors)
            return network
        try:
            copied, anew = copy_trunk(network, tensors, interpolate_biases=self.params.interpolate_biases)
        except UserError as error:
            raise UserError(f"{start.path}: {error}") from None
        log.info("%s: %d tensors copied: %s", start.path, len(copied), ", ".join(copied))
        log.info("%d tensors of the encoder, and the head, start anew: %s", len(anew), ", ".join(anew))
        return network


def _kernel(encoder: str) -> str:
    """``5x5`` or ``4x4``, from the encoder's name."""
    return "4x4" if "4x4" in encoder else "5x5"


def published(encoder: str) -> dict[str, Any]:
    """All params of a network's published training. An unknown name, which is refused later, gives some."""
    size, kernel = next((size for size in ("512", "256") if size in encoder), "128"), _kernel(encoder)
    name, large = f"{size}_{kernel}", size == "512"
    changed = {
        "input_size": int(size),
        "epochs": 251 if large else 201,
        "batch_size": BATCH.get(name, 128),
        "loss": "mse",
        "optimizer": "sgd",
        "lr": 3e-3,
        # 0.0005 * sum(W^2) in the loss, of weights only; its gradient is 2 * 0.0005 * W
        "weight_decay": 1e-3,
        "decay": "weights",
        "schedule": {"name": "multi_step", "milestones": [150, 220] if large else [150], "gamma": 0.1},
        "sampling": {"strategy": "o_o"},
        "augment": {
            "flip": 0.5, "rotation": 180.0, "scale": [1.0, 1.0], "ratio": [1.0, 1.0],
            "zoom": [1 / ZOOM, ZOOM], "translate": TRANSLATE[name], "brightness": 0.0, "contrast": 0.0,
            "pca": COLOUR[kernel],
        },
    }  # fmt: skip
    return recipe(changed)

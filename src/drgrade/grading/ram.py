"""Networks for regression activation maps: o_O's convolutions, average pooling, one linear unit.

The score is a linear unit on the mean of the last feature map, so that the map of the unit's weighted sum
shows where the score comes from (:mod:`drgrade.explain.ram`). Wang and Yang, arXiv 1703.10757, from their
code; trained as o_O's networks are, with the published learning rates.

Deviations: the output is linear. The published one is a ReLU, which gives 0 and no gradient for healthy eyes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drgrade.grading import o_o
from drgrade.grading.base import GRADERS
from drgrade.params import Experiment

if TYPE_CHECKING:
    from drgrade.grading.regression import GradedNetwork

RATES: dict[str, tuple[float, list[int]]] = {
    "128_4x4": (3e-3, [150]), "128_5x5": (1e-3, [150]), "256_4x4": (1e-3, [150]), "256_5x5": (1e-3, [150]),
    "512_4x4": (1e-4, [100]), "512_5x5": (1e-4, [150]),
}  # fmt: skip
"""Published learning rate, and epochs after which it is divided by ten, by network."""
LARGE_BATCH = 32
"""Batch size of the networks for 512 px."""


class Params(o_o.Options):
    """Train a network of o_O with average pooling and one linear unit."""

    grader: Literal["ram"] = "ram"
    """The module of ``drgrade.grading``."""
    encoder: str = "o_o_ram_128_5x5"
    """o_o_ram_128_5x5 to o_o_ram_512_4x4; those that end in _hires keep maps of 54 to 56 positions a side."""
    batch_norm: bool = True
    """Normalise the input and the activations of all convolutions but the last."""
    relu_output: bool = False
    """End in a ReLU, as published."""

    @classmethod
    def preset_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The published training of the encoder."""
        encoder = str(values.get("encoder", cls.model_fields["encoder"].default))
        common = o_o.published(encoder)
        lr, milestones = next(
            (rate for name, rate in RATES.items() if name in encoder), (1e-3, [150])
        )  # an unknown name is refused later
        batch = LARGE_BATCH if "512" in encoder else common["batch_size"]
        return common | {
            "lr": lr,
            "schedule": common["schedule"] | {"milestones": milestones},
            "batch_size": batch,
        }


@GRADERS.register("ram")
class Ram(o_o.OO):
    """Trained, chosen and saved as ``finetune`` is."""

    Params: ClassVar[type[Experiment]] = Params

    def new_network(self, start: str) -> "GradedNetwork":
        """Encoder from ``start`` and a new linear unit."""
        from drgrade.encoders import create_encoder
        from drgrade.grading.regression import EncoderWithHead

        encoder = create_encoder(self.params.encoder, start, **self.params.encoder_options())
        return EncoderWithHead(encoder, self.params.loss, relu_output=self.params.relu_output)

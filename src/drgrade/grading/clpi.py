"""CLPI: lesions in patches and grades of photographs, learned together.

A lesion network, which learns from patches of photographs with lesion masks, weights the input of a grading
network; both are trained in the same steps (:mod:`drgrade.networks.clpi`, :mod:`.clpi_network`). Source: Yang
et al., IEEE Transactions on Cybernetics 2021, doi 10.1109/TCYB.2021.3062638, and the released code, which has
no training.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from drgrade.grading.base import GRADERS, Job, Need
from drgrade.grading.finetune import Finetune
from drgrade.params import Encoded, Experiment, Grade

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drgrade.grading.clpi_network import ClpiNetwork
    from drgrade.grading.regression import FineTune

Kind = Literal["MA", "HE", "EX", "SE"]
CELL = 64
"""Side of a cell of the lesion maps in input pixels."""
FIVE_CLASSES = ("cross_entropy", "focal", "soft_qwk")
"""Losses whose outputs are logits of the grades."""


class Params(Encoded, Grade):
    """Train CLPI's networks. The publication leaves the training open: all values are choices."""

    grader: Literal["clpi"] = "clpi"
    """The module of ``drgrade.grading``."""
    encoder: str = "clpi_densenet121"
    """clpi_densenet121, clpi_densenet161, clpi_densenet169, clpi_densenet201 or clpi_densenet264."""
    start: str = "random"
    """random, experiment:NAME, or a file: a model of this grader. imagenet: the file that ``drgrade clpi
    convert`` makes of a DenseNet's weights; the lesion network is random then."""
    lesions: Annotated[
        list[Annotated[list[Kind], Field(min_length=1)]], Field(min_length=3, max_length=3)
    ] = [["MA"], ["HE"], ["EX", "SE"]]
    """Kinds of lesion of the three classes that the lesion network tells apart; others count as normal."""
    patches: Annotated[int, Field(ge=1)] = 16
    """Patches that a step sees for each graded photograph of its batch."""
    patch_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the patches' loss; that of the grades' loss is 1."""
    min_area: Annotated[float, Field(ge=0)] = 8.0
    """A patch shows a class of lesion if its area is at least this, in pixels of an input of 1024 px."""
    negative_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of negative learning in the grades' loss, for noisy grades: it lowers the probabilities of grades
    that a photograph does not have. 0: ``loss`` alone."""
    attention: bool = True
    """Weight the grading network's input by the lesion maps."""
    attn_stopgrad: bool = True
    """Stop the grades' gradient at these weights, as the released code does; it then reaches the lesion
    network through ``fusion`` alone."""
    fusion: bool = True
    """Add the map of all lesions to the feature map of the grading network."""
    align_corners: bool = False
    """Resize image and lesion maps as the released code does; cells are then up to half a cell misplaced."""
    recompute: bool = False
    """Compute activations of the lesion network again in the backward pass: less memory, a little slower."""

    @classmethod
    def preset_values(cls, values: "Mapping[str, Any]") -> dict[str, Any]:
        """The published loss, whatever that of the block ``grade``."""
        return {"loss": "cross_entropy"}

    @field_validator("encoder")
    @classmethod
    def _of_clpi(cls, encoder: str) -> str:
        if not encoder.startswith("clpi_"):
            raise ValueError(f"{encoder!r} is none of CLPI's networks; take clpi_densenet121")
        return encoder

    @field_validator("input_size")
    @classmethod
    def _whole_cells(cls, size: int) -> int:
        if size % CELL:
            raise ValueError(f"must be a multiple of {CELL}, a cell of the lesion maps")
        return size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [kind for one in self.lesions for kind in one]
        again = {kind for kind in kinds if kinds.count(kind) > 1}
        if again:
            raise ValueError(f"lesions: {min(again)} is in two classes; leave one out")
        if self.negative_share and self.loss not in FIVE_CLASSES:
            raise ValueError(f"negative_share: needs a loss of five classes: {', '.join(FIVE_CLASSES)}")
        by_grades = self.fusion or (self.attention and not self.attn_stopgrad)
        if not self.patch_weight and not by_grades:
            raise ValueError("patch_weight: nothing would train the lesion network; set it above 0")
        if self.recompute and self.compile:
            raise ValueError("recompute: does not work with compile; set one of them to false")
        return self

    def encoder_options(self) -> dict[str, Any]:
        """Options of the network for timm."""
        names = ("attention", "attn_stopgrad", "fusion", "align_corners", "recompute")
        return {name: getattr(self, name) for name in names}


@GRADERS.register("clpi")
class Clpi(Finetune):
    """Selected, saved and explained as ``finetune`` is."""

    Params: ClassVar[type[Experiment]] = Params
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    network: "ClpiNetwork"

    def new_network(self, start: str) -> "ClpiNetwork":
        """Encoder from ``start`` and a new linear layer."""
        from drgrade.encoders import create_encoder
        from drgrade.grading.clpi_network import ClpiNetwork
        from drgrade.networks.clpi import Encoder

        encoder = create_encoder(self.params.encoder, start, **self.params.encoder_options())
        assert isinstance(encoder, Encoder)
        return ClpiNetwork(encoder, self.params.loss, negative_share=self.params.negative_share)

    def new_module(self, job: Job) -> "FineTune":
        """Training on ``job.train`` and the patches of ``job.masked``."""
        from drgrade.grading.clpi_network import Joint

        return Joint(self.network, self.params, self.preprocess, job)

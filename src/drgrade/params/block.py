"""Base class and types of all blocks of ``params.yaml``."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
"""A range: lower and upper end."""


def _is_a_range(zoom: list[float]) -> list[float]:
    if not 0 < zoom[0] <= zoom[1]:
        raise ValueError("must be two numbers above 0, the smaller one first")
    return zoom


Zoom = Annotated[Pair, AfterValidator(_is_a_range)]
"""A range of factors: two numbers above 0, the smaller one first."""


class Block(BaseModel):
    """A block of ``params.yaml``: unknown keys and wrong types are errors.

    Nested blocks may be given in part: the other keys keep the values of the field's default.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _rest_of_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        parts = {
            name: field.default.model_dump(exclude_unset=True) | values[name]
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Block) and isinstance(values.get(name), dict)
        }
        return values | parts


class Augment(Block):
    """Random augmentation of training images; each change can be switched off with 0."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip and, drawn independently, of a vertical flip. With a rotation of 180,
    one of the two would give the same images."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Largest rotation in degrees, uniform within plus and minus this."""
    scale: Pair = [0.87, 1.15]
    """Range of the area that is cropped and resized, relative to the image."""
    ratio: Pair = [0.8, 1.25]
    """Range of the crop's aspect ratio."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest shift along each axis as a share of the side, uniform within plus and minus this."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Brightness factor, uniform within 1 plus and minus this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Contrast factor, uniform within 1 plus and minus this."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Saturation factor, uniform within 1 plus and minus this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest hue shift as a share of the colour circle, uniform within plus and minus this."""
    grayscale: Fraction = 0.0
    """Probability of conversion to greyscale."""
    zoom: Zoom = [1.0, 1.0]
    """Range of the zoom of each axis about the image centre, log-uniform, drawn independently for both axes;
    above 1 enlarges (o_O: 1/1.15 to 1.15)."""
    pca: Annotated[float, Field(ge=0)] = 0.0
    """Strength of PCA colour noise (Krizhevsky et al., 2012), which adds one colour to the whole image: the
    principal axes of pixel colours, each times a normally distributed factor with this standard deviation
    (o_O: 0.25 or 0.5)."""


class TestTime(Block):
    """Test-time augmentation: outputs are averaged over several transforms, the same ones for every image."""

    __test__: ClassVar[bool] = False  # pytest would take it for a test by its name

    transforms: Annotated[int, Field(ge=1)] = 1
    """Transforms of each image (o_O: 50), by which the time of prediction is multiplied; 1: only the image as
    it is."""
    sequence: Literal["sobol", "halton", "flips"] = "sobol"
    """Quasi-random numbers behind the transforms. sobol: a scrambled Sobol sequence over all changes of the
    block ``augment``; the first transform leaves the image as it is. halton: as in o_O, with rotation, shift,
    zoom, one flip and PCA colour noise only. flips: the image and its mirror images, nothing else; 2
    transforms: left and right swapped; 4: also up and down, and both."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Points of the sequence to leave out, so that several models can use different ones (o_O: 0, 50 and
    100). No effect with flips."""

    @model_validator(mode="after")
    def _mirrored(self) -> Self:
        if self.sequence == "flips" and self.transforms not in (1, 2, 4):
            raise ValueError(f"flips are 2 or 4 transforms, not {self.transforms}; take sobol for more")
        return self

"""Base class and types of all blocks of ``params.yaml``."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
"""A range: lower and upper end."""


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
    """Probability of a horizontal flip and, drawn independently, of a vertical flip."""
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

"""What all blocks of ``params.yaml`` share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
"""From, to."""


class Block(BaseModel):
    """A block of ``params.yaml``: unknown keys and wrong types are errors.

    Of a block within it a file may give a part: the other keys are those of the field's default.
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
    """Random changes an image goes through in training; each can be switched off with 0."""

    flip: Fraction = 0.5
    """Chance of a horizontal and, drawn apart, of a vertical flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Rotation in degrees, uniform in plus and minus this."""
    scale: Pair = [0.87, 1.15]
    """Range of the area that is cropped and resized, relative to the image."""
    ratio: Pair = [0.8, 1.25]
    """Range of the crop's aspect ratio."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Shift along each axis as a share of the side, uniform in plus and minus this."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Brightness factor, uniform in 1 plus and minus this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Contrast factor, uniform in 1 plus and minus this."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Saturation factor, uniform in 1 plus and minus this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Hue turn as a share of the circle, uniform in plus and minus this."""
    grayscale: Fraction = 0.0
    """Chance of losing all colour."""

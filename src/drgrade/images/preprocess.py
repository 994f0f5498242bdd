"""Preprocessing from a photograph to a network's input; saved with each model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from drgrade.params import Crop

if TYPE_CHECKING:
    import torch

    from drgrade.images.store import Images


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of a photograph: cropped, scaled to ``size``, normalised.

    Attributes:
        crop: the block ``crop`` with which the model was trained.
        size: side of the input in pixels.
        mean: channel means (RGB, images in 0-1).
        std: channel standard deviations.
    """

    crop: Crop
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, encoder: str, size: int, crop: Crop) -> Self:
        """Return the preprocessing of a timm encoder."""
        from drgrade.encoders import normalisation

        mean, std = normalisation(encoder)
        return cls(crop, size, tuple(mean), tuple(std))

    def scaled(self, images: "Images") -> "Images":
        """Scale crops (N, S, S, 3) to the input size."""
        from drgrade.images.scaled import at_size

        return at_size(images, self.size)

    def normalised(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Normalise scaled images (B, 3, size, size), uint8 or float in 0-1; returns float32."""
        from drgrade.images.augment import in_unit_range, normalise

        return normalise(in_unit_range(batch), self.mean, self.std)

    def record(self) -> dict[str, Any]:
        """Return the values for ``model.json``."""
        return {
            "crop": self.crop.model_dump(), "size": self.size, "mean": list(self.mean), "std": list(self.std)
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Create an instance from the values of :meth:`record`."""
        crop = Crop.model_validate(record["crop"])
        return cls(crop, int(record["size"]), tuple(record["mean"]), tuple(record["std"]))

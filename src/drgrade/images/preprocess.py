"""From a crop to a network's input: one description, kept with a model and used wherever it is used."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from drgrade.params import Crop

if TYPE_CHECKING:
    import torch

    from drgrade.images.store import Pictures


@dataclass(frozen=True)
class Preprocess:
    """How a photograph becomes an input: cropped, scaled to ``size``, normalised.

    Attributes:
        crop: the block ``crop`` that the model was trained on.
        size: side of the input in pixels.
        mean: of the channels (RGB, 0-1), subtracted.
        std: of the channels, divided by.
    """

    crop: Crop
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, encoder: str, size: int, crop: Crop) -> Self:
        """That of a timm encoder."""
        from drgrade.encoders import normalisation

        mean, std = normalisation(encoder)
        return cls(crop, size, tuple(mean), tuple(std))

    def scaled(self, images: "Pictures") -> "Pictures":
        """Crops (N, S, S, 3) at the input's size."""
        from drgrade.images.scaled import at_size

        return at_size(images, self.size)

    def normalised(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Scaled images (B, 3, size, size), uint8 or 0-1, as the network takes them (float32)."""
        from drgrade.images.augment import in_unit_range, normalise

        return normalise(in_unit_range(batch), self.mean, self.std)

    def record(self) -> dict[str, Any]:
        """For ``model.json``."""
        return {
            "crop": self.crop.model_dump(), "size": self.size, "mean": list(self.mean), "std": list(self.std)
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """What :meth:`record` wrote."""
        crop = Crop.model_validate(record["crop"])
        return cls(crop, int(record["size"]), tuple(record["mean"]), tuple(record["std"]))

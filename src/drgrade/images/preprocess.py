"""Preprocessing from a photograph to a network's input; saved with each model."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from drgrade.images.statistics import PUBLISHED, Statistics
from drgrade.params import Crop
from drgrade.params.block import Augment, TestTime

if TYPE_CHECKING:
    import torch

    from drgrade.images.augment import Plan
    from drgrade.images.store import Images


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of a photograph: cropped, scaled to ``size``, transformed at test time, normalised.

    Attributes:
        crop: the block ``crop`` with which the model was trained.
        size: side of the input in pixels.
        mean: channel means (RGB, images in 0-1).
        std: channel standard deviations.
        axes: principal axes of pixel colours, for PCA colour noise; see
            :class:`drgrade.images.statistics.Statistics`.
        test_time: test-time augmentation.
        augment: its ranges: the block ``augment`` with which the model was trained; None: the default ranges.
    """

    crop: Crop
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...] = PUBLISHED.axes
    test_time: TestTime = field(default_factory=TestTime)
    augment: Augment | None = None

    @classmethod
    def of(
        cls,
        encoder: str,
        size: int,
        crop: Crop,
        *,
        test_time: TestTime | None = None,
        augment: Augment | None = None,
        statistics: Statistics | None = None,
    ) -> Self:
        """Return the preprocessing of a timm encoder; ``statistics`` replace its mean and deviation."""
        from drgrade.encoders import normalisation

        mean, std = (statistics.mean, statistics.std) if statistics else map(tuple, normalisation(encoder))
        axes = (statistics or PUBLISHED).axes
        return cls(crop, size, mean, std, axes, test_time or TestTime(), augment)

    def scaled(self, images: "Images") -> "Images":
        """Scale crops (N, S, S, 3) to the input size."""
        from drgrade.images.scaled import at_size

        return at_size(images, self.size)

    def normalised(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Normalise scaled images (B, 3, size, size), uint8 or float in 0-1; returns float32."""
        from drgrade.images.augment import in_unit_range, normalise

        return normalise(in_unit_range(batch), self.mean, self.std)

    def changes(self) -> "Plan | None":
        """Transforms of test-time augmentation, the same for every image; None: images stay as they are."""
        from drgrade.images.quasi import quasi_random

        if self.test_time.transforms == 1:
            return None
        return quasi_random(self.test_time, self.augment or Augment(), self.axes)

    def record(self) -> dict[str, Any]:
        """Return the values for ``model.json``."""
        return {
            "crop": self.crop.model_dump(), "size": self.size, "mean": list(self.mean), "std": list(self.std),
            "axes": [list(axis) for axis in self.axes], "test_time": self.test_time.model_dump(),
            "augment": self.augment and self.augment.model_dump(),
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Create an instance from the values of :meth:`record`; old models have only the first four."""
        augment = record.get("augment")
        return cls(
            Crop.model_validate(record["crop"]),
            int(record["size"]),
            tuple(record["mean"]),
            tuple(record["std"]),
            tuple(map(tuple, record.get("axes", PUBLISHED.axes))),
            TestTime.model_validate(record.get("test_time", {})),
            augment and Augment.model_validate(augment),
        )

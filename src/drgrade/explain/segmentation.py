"""Probability of any lesion at each pixel, by the networks of the stage segmentation."""

from typing import TYPE_CHECKING

from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, Heat, LesionResults
from drgrade.explain.photographs import Photograph
from drgrade.images.dataset import CroppedDataset

if TYPE_CHECKING:
    from drgrade.segmentation.network import SegmentationNetwork


@EXPLAINERS.register("segmentation")
class Segmentation:
    """The probability of any lesion, 0-1, on one scale for all photographs; 0 outside the crop.

    A photograph with masks is predicted by the network that it tests; where there is none, by one that it
    validates. All other photographs are predicted by the first network.

    Args:
        results: ``masked`` and ``segmentation`` are read.

    Raises:
        UserError: a network is missing or damaged.
    """

    def __init__(self, results: LesionResults) -> None:
        from drgrade.segmentation.measure import load_networks
        from drgrade.segmentation.parts import parts

        if results.segmentation is None:
            raise UserError("--segmentation: needed by the method segmentation; give the trained networks")
        self.networks = load_networks(results.segmentation)
        settings = next(iter(self.networks.values())).params
        self.masked = results.masked.name
        self.splits = parts(results.masked.index, settings)

    def explains(self, source: CroppedDataset) -> set[str]:
        """Return image ids of the photographs that some network was not trained on."""
        names = source.index["image_id"].tolist()
        return {image_id for image_id in names if self.network_for(source.name, image_id) is not None}

    def network_for(self, dataset: str, image_id: str) -> "SegmentationNetwork | None":
        """Return the network to predict a photograph with; None if all were trained on it."""
        own = dataset == self.masked
        splits = {part: split.get(image_id) if own else None for part, split in self.splits.items()}
        for wanted in ("test", "val", None):
            for part, network in self.networks.items():
                if splits[part] == wanted:
                    return network
        return None

    def heat(self, photograph: Photograph) -> Heat:
        """Return the probability (H, W) that at least one kind of lesion is there, kinds being independent.

        Raises:
            ValueError: all networks were trained on this photograph.
        """
        from drgrade.segmentation.predict import probabilities, to_photograph

        network = self.network_for(photograph.dataset, photograph.image_id)
        if network is None:
            raise ValueError(f"{photograph.image_id}: all networks were trained on it")
        box = photograph.geometry.box
        found = 1 - (1 - probabilities(network, photograph.image, box)).prod(axis=0, keepdims=True)
        (spread,) = to_photograph(found, box, photograph.image.shape)
        return spread

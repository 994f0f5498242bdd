"""Heat maps of the photographs of a dataset, in original pixels, by explainers of either kind."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pandas as pd
from torch import Tensor, nn

from drgrade.explain.base import (
    Explainer,
    Heat,
    InGrades,
    LesionExplainer,
    PerHead,
    over_input,
    scaled,
)
from drgrade.explain.faithfulness import faithfulness
from drgrade.explain.photographs import Photograph, read
from drgrade.explain.score import to_original
from drgrade.grading.base import Explainable
from drgrade.images.dataset import CroppedDataset


@dataclass(frozen=True)
class CropMaps:
    """Maps of one network for n crops.

    Attributes:
        network: the network.
        inputs: its normalised inputs (n, 3, S, S).
        heat: maps over the crops (n, h, w).
        heads: maps of attention heads (n, K, h, w); K is 0 for most methods.
    """

    network: nn.Module
    inputs: Tensor
    heat: Heat
    heads: Heat

    def faithfulness(self, place: int, photograph: Photograph) -> dict[str, float]:
        """Insertion and deletion of the map of one crop, see :func:`.faithfulness.faithfulness`."""
        size = self.inputs.shape[2:]
        heat = cv2.resize(self.heat[place], size, interpolation=cv2.INTER_LINEAR)
        field = photograph.geometry.mask_to_crop(photograph.field).astype(np.uint8)
        fov = cv2.resize(field, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
        return faithfulness(self.network, self.inputs[place], heat, fov, photograph.image_id)


@dataclass(frozen=True)
class Explained:
    """A photograph with its map.

    Attributes:
        photograph: the photograph.
        heat: (H, W) in original pixels: heat, 0-1, or values in grade units.
        heads: heat maps (H, W) of attention heads; those of several networks one after the other.
        place: number of its crop in ``crops``.
        crops: maps of the crop by each network; empty if no network is explained.
    """

    photograph: Photograph
    heat: Heat
    heads: Iterable[Heat] = ()
    place: int = 0
    crops: Sequence[CropMaps] = ()

    def faithfulness(self) -> dict[str, float]:
        """Insertion and deletion of the map, mean over networks; empty if no network is explained."""
        found = [crops.faithfulness(self.place, self.photograph) for crops in self.crops]
        return {str(key): round(float(value), 6) for key, value in pd.DataFrame(found).mean().items()}


def of_networks(
    explainer: Explainer,
    networks: Sequence[Explainable],
    scale: str,
    source: CroppedDataset,
    rows: pd.DataFrame,
) -> Iterator[Explained]:
    """Explain networks: yield the mean of their maps for each row of a dataset's index.

    Args:
        explainer: the method.
        networks: networks and their preprocessing; the sizes of their inputs may differ.
        scale: as in ``explanations.<name>.scale``.
        source: dataset of the photographs.
        rows: rows of its index.
    """
    found = [crop_maps(explainer, network, scale, source, rows) for network in networks if len(rows)]
    for place, (_, row) in enumerate(rows.iterrows()):
        photograph = read(source, row)
        height, width = photograph.image.shape[:2]
        spread = partial(to_original, geometry=photograph.geometry, width=width, height=height)
        heat = np.mean([spread(crops.heat[place]) for crops in found], axis=0)
        heads = (spread(head) for crops in found for head in crops.heads[place])
        yield Explained(photograph, heat, heads, place, found)


def of_lesions(explainer: LesionExplainer, source: CroppedDataset, rows: pd.DataFrame) -> Iterator[Explained]:
    """Show lesions: yield the map of each row of a dataset's index."""
    for _, row in rows.iterrows():
        photograph = read(source, row)
        yield Explained(photograph, explainer.heat(photograph))


def crop_maps(
    explainer: Explainer, explained: Explainable, scale: str, source: CroppedDataset, rows: pd.DataFrame
) -> CropMaps:
    """Return the maps of a network over the crops of ``rows``, one row or more.

    They are in grade units if the method has a unit and the scale is ``common``, otherwise heat, 0-1. Their
    side is the network's input size, with ``lesion_maps`` that of its lesion maps.
    """
    from drgrade.device import device
    from drgrade.training import pictures

    places = np.array([source.crops.rows[image_id] for image_id in rows["image_id"]])
    batch = pictures(explained.preprocess.scaled(source.images), places)
    network = explained.network.to(device()).eval()
    inputs = explained.preprocess.normalised(batch.to(device()))
    side = inputs.shape[-1]
    heads = np.empty((len(rows), 0, 1, 1), np.float32)
    if isinstance(explainer, PerHead):
        weights = explainer.heads(network, inputs)
        heat = over_input(scaled(weights.mean(axis=1)), network, side)
        heads = np.stack([over_input(scaled(of_image), network, side) for of_image in weights])
    elif isinstance(explainer, InGrades):
        values = explainer.values(network, inputs)
        heat = over_input(stretched(values) if scale == "each" else values, network, side)
    else:
        heat = explainer.heat(network, inputs)
    return CropMaps(network, inputs, heat, heads)


def stretched(values: Heat) -> Heat:
    """Scale each of the maps (n, h, w) to 0-1 on its own; a constant map becomes 0."""
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return (values - low) / np.maximum(high - low, np.finfo(np.float32).tiny)

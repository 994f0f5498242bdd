"""Heat maps of new photographs, drawn over them: which regions raised the grade."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from drgrade.device import device
from drgrade.errors import UserError
from drgrade.evaluate.metrics import REFERABLE
from drgrade.explain.base import EXPLAINERS, Explainer, Heat, InGrades, over_input, to_heat
from drgrade.explain.overlay import overlay
from drgrade.explain.score import to_original
from drgrade.grading.base import Explainable, Grader
from drgrade.images.geometry import CropGeometry
from drgrade.images.prepare import Prepared
from drgrade.images.rules import RGBImage
from drgrade.params.results import NEEDS
from drgrade.schema import GRADES
from drgrade.training import pictures

SIDE = 1024
"""Longest side of a drawing in pixels."""
AUTO = "auto"
"""In place of a method: the first of METHODS that can explain the network."""
METHODS = ("ram", "cam", "attention")
"""For a linear unit on mean features, for convolutional networks, and for vision transformers."""
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class HeatMaps:
    """Explains trained networks; of several the maps are averaged.

    Attributes:
        networks: networks of the same kind and input size, with their preprocessing.
        explainer: the method.
        side: longest side of a drawing in pixels.
    """

    networks: Sequence[Explainable]
    explainer: Explainer
    side: int = SIDE

    @classmethod
    def of(cls, graders: Iterable[Grader], method: str = AUTO) -> Self:
        """Prepare to explain trained graders of one experiment.

        Args:
            graders: the graders.
            method: name of an explainer, or AUTO.

        Raises:
            UserError: the method is unknown or explains no network, or cannot explain this one.
        """
        if method in NEEDS:
            raise UserError(f"--explain {method}: reads the lesion stages, which new photographs do not have")
        found = [(grader, grader.explainable()) for grader in graders]
        for grader, network in found:
            if network is None:
                raise UserError(f"--explain: the grader {grader.params.grader} has no network to explain")
        networks = [network for _, network in found if network is not None]
        choose = _first_that_works if method == AUTO else partial(_working, method)
        return cls(networks, choose(networks[0]))

    @property
    def in_grades(self) -> bool:
        """Whether all maps share one scale, on which the heat 1 is grade 4."""
        return isinstance(self.explainer, InGrades)

    def heat(self, crops: Pixels) -> Heat:
        """Return the mean heat maps (n, h, w), 0-1, over crops (n, S, S, 3)."""
        maps = np.mean([_maps(self.explainer, network, crops) for network in self.networks], axis=0)
        return to_heat(maps) if self.in_grades else maps

    def draw(self, photograph: Prepared, heat: Heat) -> RGBImage:
        """Draw a heat map (h, w) over its photograph; with one scale, a line surrounds referable heat.

        Returns:
            uint8 RGB, as large as the small copy of the photograph.
        """
        image, geometry, width = photograph.small, photograph.geometry, photograph.survey.width
        assert image is not None
        assert geometry is not None
        assert width is not None
        scale = image.shape[1] / width
        x0, y0, x1, y1 = (round(edge * scale) for edge in geometry.box)
        place = CropGeometry(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1), geometry.size)
        spread = to_original(heat, place, image.shape[1], image.shape[0])
        level = REFERABLE / GRADES[-1] if self.in_grades else None
        return overlay(image, spread, side=self.side, level=level)


def _first_that_works(network: Explainable) -> Explainer:
    """Return the first of METHODS that can explain the network."""
    for method in METHODS:
        try:
            return _working(method, network)
        except UserError:
            continue
    raise UserError(f"--explain: none of {', '.join(METHODS)} can explain this network; name another method")


def _working(method: str, network: Explainable) -> Explainer:
    """Return an explainer after a test on a black image.

    Raises:
        UserError: it is unknown, or cannot explain this network.
    """
    side = network.preprocess.crop.size
    try:
        explainer: Explainer = EXPLAINERS.get(method)()
        _maps(explainer, network, np.zeros((1, side, side, 3), np.uint8))
    except UserError as error:
        reason = str(error).removeprefix("explanations.<name>.method: ")
        raise UserError(f"--explain {method}: {reason}") from None
    return explainer


def _maps(explainer: Any, explained: Explainable, crops: Pixels) -> Heat:
    """Return maps (n, h, w) over crops (n, S, S, 3): heat, or values in grade units where there is a unit."""
    network, inputs = _inputs(explained, crops)
    if isinstance(explainer, InGrades):
        return over_input(explainer.values(network, inputs), network, inputs.shape[-1])
    heat: Heat = explainer.heat(network, inputs)
    return heat


def _inputs(explained: Explainable, crops: Pixels) -> tuple[nn.Module, Tensor]:
    """Return the network and its normalised inputs, both on the device."""
    batch = pictures(explained.preprocess.scaled(crops), np.arange(len(crops)))
    network = explained.network.to(device()).eval()
    return network, explained.preprocess.normalised(batch.to(device()))

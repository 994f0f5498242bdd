"""Grade one photograph for the web page: the answer, and the images beside it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from drgrade.errors import UserError
from drgrade.explain.overlay import shrunk
from drgrade.images.crop import crop_photograph
from drgrade.images.prepare import OK
from drgrade.images.read import read_photograph
from drgrade.images.rules import RGBImage
from drgrade.predict.heat_maps import AUTO
from drgrade.predict.model import Graded, Model
from drgrade.web.answer import as_html
from drgrade.web.lesions import LesionFinder, draw, summary

log = logging.getLogger(__name__)

LESION_MAPS = "lesion_maps"
"""The explainer that draws what a grader's own lesion network sees."""


class Answer(NamedTuple):
    """What the page shows for one photograph; images are uint8 RGB, at most 1024 pixels wide or high.

    Attributes:
        html: the answer in words and bars.
        photograph: None if it was not graded, as are the next two.
        heat_map: None too if the model has no network to explain.
        lesions: None too without a lesion detector or network.
    """

    html: str
    photograph: RGBImage | None = None
    heat_map: RGBImage | None = None
    lesions: RGBImage | None = None


@dataclass(frozen=True)
class WebGrader:
    """Grades one photograph at a time.

    Attributes:
        model: the trained model.
        heat_maps: method of the heat maps; None if none can explain the model.
        lesion_maps: method of the lesion maps; None if the model has no lesion network.
        finder: the lesion detector, which is used in place of lesion maps; None: there is none.
    """

    model: Model
    heat_maps: str | None
    lesion_maps: str | None
    finder: LesionFinder | None

    @classmethod
    def of(cls, model: Model, finder: LesionFinder | None, photograph: Path) -> Self:
        """Find out what can be shown for a model by grading a photograph, which also warms it up."""
        maps = None if finder else _if_available(model, LESION_MAPS, photograph)
        return cls(model, _if_available(model, AUTO, photograph), maps, finder)

    def grade(self, path: Path) -> Answer:
        """Grade a photograph; a file that is none, or shows no retina, is an answer with the reason."""
        graded = _graded(self.model, path, self.heat_maps)
        row = graded.table.iloc[0].to_dict()
        if row["status"] != OK:
            return Answer(as_html(row, self.model.fit, self.model.params, {}))
        image = read_photograph(path)
        lesions, found = self._lesions(path, image)
        notes = {"Heat map": self._heat_map_note(), "Lesions": found}
        html = as_html(row, self.model.fit, self.model.params, notes)
        return Answer(html, shrunk(image), graded.heat_maps[0], lesions)

    def _lesions(self, path: Path, image: RGBImage) -> tuple[RGBImage | None, str]:
        """Return a drawing of the lesions, if something finds them, and a line about them."""
        if self.finder is not None:
            _, geometry, _ = crop_photograph(path, self.model.crop)
            found = self.finder.find(image, geometry.box)
            return draw(image, found), summary(found)
        if self.lesion_maps is None:
            return None, "not searched, as no detector was given (--detector results/<dataset>/detector)"
        drawing = _graded(self.model, path, self.lesion_maps).heat_maps[0]
        return drawing, "where the grader's own lesion network sees lesions"

    def _heat_map_note(self) -> str:
        if self.heat_maps is None:
            return "none, as this model has no network to explain"
        return "warm colours: what weighed most for the network; a black line, if any: grade 2 or higher"


def _graded(model: Model, path: Path, method: str | None) -> Graded:
    return next(model.batches([path], explain=method))


def _if_available(model: Model, method: str, photograph: Path) -> str | None:
    """Return the method if it can explain the model."""
    try:
        _graded(model, photograph, method)
    except UserError as error:
        log.debug("%s", error)
        return None
    return method

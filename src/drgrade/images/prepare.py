"""Prepare new photographs for grading: each is read once, surveyed and cropped as in the pipeline.

Worker processes import this module, so it does not import torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drgrade.images.crop import crop_photograph
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import PhotographFile, ReadError
from drgrade.images.rules import RGBImage
from drgrade.images.survey import Survey, survey
from drgrade.params import Crop

OK, FAILED, NO_RETINA = "ok", "failed", "no retina found"
"""Status of a photograph: it can be graded, it cannot be read, and it should not be graded."""


class Prepared(NamedTuple):
    """One photograph prepared for grading, or the reason why it cannot be graded.

    Attributes:
        crop: uint8 RGB (size, size, 3); None if the photograph cannot be read.
        geometry: position of the crop in the photograph, in its original pixels.
        rule: the rule that found the crop.
        status: OK, FAILED or NO_RETINA.
        reason: why the status is not OK.
        survey: size and quality.
        small: the photograph, uint8 RGB, scaled down to draw on; None unless it was asked for.
    """

    crop: RGBImage | None = None
    geometry: CropGeometry | None = None
    rule: str = ""
    status: str = FAILED
    reason: str = ""
    survey: Survey = Survey()
    small: RGBImage | None = None


def prepare(photograph: Path | bytes, options: Crop, small: int | None = None) -> Prepared:
    """Read, survey and crop one photograph; does not raise for unreadable ones.

    Args:
        photograph: its path or the content of its file.
        options: how to crop.
        small: longest side in pixels of a small copy; None: no copy.
    """
    file = PhotographFile(photograph)
    found = survey(file)
    if found.reason:
        return Prepared(reason=found.reason)
    try:
        crop, geometry, rule = crop_photograph(file, options)
        copy = None if small is None else _small(file, small)
    except ReadError as error:
        return Prepared(reason=str(error))
    if found.retina:
        return Prepared(crop, geometry, rule, OK, "", found, copy)
    reason = "neither a field of view nor the colours of a retina"
    return Prepared(crop, geometry, rule, NO_RETINA, reason, found, copy)


def prepare_all(options: Crop, small: int | None, photographs: Sequence[Path | bytes]) -> list[Prepared]:
    """Prepare several photographs, see :func:`prepare`."""
    return [prepare(photograph, options, small) for photograph in photographs]


def _small(file: PhotographFile, side: int) -> RGBImage:
    """A copy whose longer side is at most ``side`` pixels."""
    from drgrade.explain.overlay import shrunk  # imports scikit-learn

    width, height = file.size()
    image, _ = file.reduced(side * min(width, height) / max(width, height))
    return shrunk(image, side)

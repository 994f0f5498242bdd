"""Survey every photograph once, at low resolution: size, quality, perceptual hash, or why it is unusable."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drgrade.images.fingerprint import perceptual_hash
from drgrade.images.quality import looks_like_retina, measure
from drgrade.images.read import PhotographFile, ReadError, opened
from drgrade.images.rules import fit_disc
from drgrade.images.workers import in_order

SIDE = 320
"""Minimum shorter side for decoding in pixels: an eighth of most cameras' resolution, which is fast."""


CHUNK = 32
"""Photographs per task of a worker."""
WORTH = 200
"""Number of photographs from which starting worker processes pays."""


class Survey(NamedTuple):
    """Results of surveying one photograph; columns of ``index.parquet``.

    Attributes:
        width: in pixels, as displayed; None if the header cannot be read.
        height: likewise.
        fov: measure of :mod:`drgrade.images.quality`, 0-1; None if the photograph cannot be decoded.
        sharpness: likewise.
        exposure: likewise.
        contrast: likewise.
        quality: the lowest of the four.
        phash: perceptual hash, 64 hexadecimal digits; None for an image without content.
        retina: whether it looks like a photograph of a retina; None when it cannot be decoded.
        reason: why it cannot be read; empty if it can.
    """

    width: int | None = None
    height: int | None = None
    fov: float | None = None
    sharpness: float | None = None
    exposure: float | None = None
    contrast: float | None = None
    quality: float | None = None
    phash: str | None = None
    retina: bool | None = None
    reason: str = ""


def survey(photograph: Path | PhotographFile) -> Survey:
    """Survey one photograph; does not raise for unreadable ones."""
    file = opened(photograph)
    try:
        width, height = file.size()
    except ReadError as error:
        return Survey(reason=str(error))
    try:
        picture, _ = file.reduced(SIDE)
    except ReadError as error:
        return Survey(width, height, reason=str(error))
    circle = fit_disc(picture)
    quality = measure(picture, circle)
    phash, retina = perceptual_hash(picture, circle), looks_like_retina(picture, circle)
    return Survey(width, height, *quality, quality.score, phash, retina)


def survey_all(paths: Sequence[Path | None], workers: int) -> list[Survey]:
    """Survey many photographs in up to ``workers`` processes; an empty survey for a path of None."""
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    return [
        look for looks in in_order(_survey_chunk, chunks, min(workers, len(paths) // WORTH)) for look in looks
    ]


def _survey_chunk(paths: Sequence[Path | None]) -> list[Survey]:
    return [Survey() if path is None else survey(path) for path in paths]

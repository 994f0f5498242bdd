"""Survey every photograph once, at low resolution: size, quality, perceptual hash, or why it is unusable."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drgrade.files import write_file
from drgrade.images.fingerprint import perceptual_hash
from drgrade.images.quality import looks_like_retina, measure
from drgrade.images.read import PhotographFile, ReadError, opened
from drgrade.images.rules import fit_disc
from drgrade.images.workers import in_order
from drgrade.parts import SINGLE_JOB, share

SIDE = 320
"""Minimum shorter side for decoding in pixels: an eighth of most cameras' resolution, which is fast."""
CHUNK = 32
"""Photographs per task of a worker, and per file of partial results."""
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
    chunks = _chunks(paths)
    return [look for looks in in_order(_survey_chunk, chunks, _worthwhile(workers, chunks)) for look in looks]


def survey_parts(
    paths: Sequence[Path | None], folder: Path, workers: int, shard: tuple[int, int] = SINGLE_JOB
) -> list[Survey] | None:
    """Survey many photographs like :func:`survey_all`, in parts that are kept in a folder.

    Args:
        paths: all photographs; None gives an empty survey.
        folder: for the parts, see :func:`drgrade.parts.parts_folder`; parts that it holds are not repeated.
        workers: number of processes.
        shard: number of this job (from 0) and number of jobs; (0, 1) is a single job.

    Returns:
        The surveys of all photographs; None for a job with a share of them.

    Raises:
        UserError: there is no such shard.
    """
    chunks = _chunks(paths)
    files = [folder / f"{number * CHUNK:07d}.json" for number in range(len(chunks))]
    todo = [
        (chunk, file)
        for chunk, file in share(list(zip(chunks, files, strict=True)), shard)
        if not file.exists()
    ]
    for _ in in_order(_survey_part, todo, _worthwhile(workers, todo)):
        pass
    if shard != SINGLE_JOB:
        return None
    return [Survey(*values) for file in files for values in json.loads(file.read_bytes())]


def _chunks(paths: Sequence[Path | None]) -> list[Sequence[Path | None]]:
    return [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]


def _worthwhile(workers: int, chunks: Sequence[object]) -> int:
    """Number of processes, of ``workers``, whose start pays for so many chunks."""
    return min(workers, len(chunks) * CHUNK // WORTH)


def _survey_chunk(paths: Sequence[Path | None]) -> list[Survey]:
    return [Survey() if path is None else survey(path) for path in paths]


def _survey_part(part: tuple[Sequence[Path | None], Path]) -> None:
    paths, file = part
    write_file(file, json.dumps(_survey_chunk(paths)).encode())

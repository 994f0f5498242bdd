"""Mutated photographs: an image within limits, or a reason in one line; no crash, hang or want of memory.

The mutations are drawn by a seeded generator, the same in every run: hypothesis takes several times as long
for each, and could not shrink a crash of the process. ``DRGRADE_MUTATIONS=1000000`` makes a longer run.
"""

import os
import random
import zlib
from pathlib import Path

import numpy as np
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import FIELDS, mutated, with_checksums
from tests.hostile.photographs import samples

from drgrade.images.prepare import FAILED, prepare
from drgrade.images.read import LONGEST, MOST_PIXELS, PhotographFile, ReadError
from drgrade.params import Crop

MUTATIONS = int(os.environ.get("DRGRADE_MUTATIONS", "10000"))
TURNS = ("jpeg", "png", "tiff", "jpeg", "dicom", "png", "jpeg", "tiff", "other", "dicom")
"""Formats of the mutated photographs, in turn."""
CROPPED = 8
"""One of so many images is surveyed and cropped too, which takes ten times as long as reading."""
RULES = ("disc", "o_O", "graham", "clpi")


def mutant(number: int) -> bytes:
    """Mutated photograph by its number."""
    kind = TURNS[number % len(TURNS)]
    rng = random.Random(number)
    files = samples()[kind]
    chosen = rng.choice(files)
    fields = list(FIELDS[kind](chosen)) if kind in FIELDS else []
    data = mutated(chosen, [*files, samples()["jpeg"][1]], rng, fields)
    return with_checksums(data) if kind == "png" and rng.random() < 0.9 else data


def look(data: bytes) -> str:
    """Read a file, and survey and crop some of the images as the pipeline does."""
    file = PhotographFile(data)
    try:
        file.size()
    except ReadError as error:
        one_line(str(error))
    try:
        image, _ = file.reduced(None)
    except ReadError as error:
        one_line(str(error))
        return "refused"
    height, width = image.shape[:2]
    assert (image.dtype, image.shape) == (np.uint8, (height, width, 3))
    assert height * width <= MOST_PIXELS
    assert max(height, width) <= LONGEST * min(height, width)
    if zlib.crc32(data) % CROPPED == 0:
        options = Crop(size=32 + 16 * (width % 2), rule=RULES[len(data) % len(RULES)])
        prepared = prepare(data, options)
        assert prepared.status != FAILED, prepared.reason
        assert prepared.crop.shape == (options.size, options.size, 3)
        assert np.isfinite(prepared.survey.quality)
    return "read"


def test_mutated_photographs_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    outcomes = survive(mutant, look, MUTATIONS, tmp_path)
    assert outcomes.total() == MUTATIONS
    assert min(outcomes["read"], outcomes["refused"]) > 0.1 * MUTATIONS, outcomes

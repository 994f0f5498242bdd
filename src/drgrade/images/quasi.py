"""Transforms for test-time augmentation: mirror images, or quasi-random ones.

Quasi-random numbers cover the ranges of the augmentation evenly. With the Halton sequence of o_O many
dimensions are ramps: the zooms of both axes are equal in the first 10 transforms, and the first 11 have no
flip. The scrambled Sobol sequence has no such weakness.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from drgrade.images.augment import ALL_DRAWS, NOISE, ZOOM, Floats, Plan, changes, plan
from drgrade.images.statistics import PUBLISHED
from drgrade.params.block import Augment, TestTime
from drgrade.rng import numpy_rng

IDENTITY: Mapping[str, float] = {
    "flip_x": False, "flip_y": False, "angle": 0.0, "width": 1.0, "height": 1.0, "place_x": 0.0,
    "place_y": 0.0, "shift_x": 0.0, "shift_y": 0.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0,
    "hue": 0.0, "grayscale": False, "zoom_x": 1.0, "zoom_y": 1.0, "pca_0": 0.0, "pca_1": 0.0, "pca_2": 0.0,
}  # fmt: skip
"""Draws, see :func:`drgrade.images.augment.draw`, that leave an image as it is."""
PUBLISHED_CHANGES = (
    "flip_x", "angle", "shift_x", "shift_y", "zoom_x", "zoom_y", "pca_0", "pca_1", "pca_2"
)  # fmt: skip
"""Draws that o_O's test-time augmentation changes."""

ONLY_FLIPS = Augment(
    rotation=0.0, scale=[1.0, 1.0], ratio=[1.0, 1.0], translate=0.0, brightness=0.0, contrast=0.0
)


def quasi_random(params: TestTime, augment: Augment, axes: npt.ArrayLike = PUBLISHED.axes) -> Plan:
    """Plan the transforms of test-time augmentation, which are the same for every image.

    Args:
        params: number of transforms, sequence and skipped points.
        augment: ranges of the changes: the block with which the network was trained.
        axes: principal axes of pixel colours (3, 3), as in training.

    Returns:
        Tensors on the CPU, with a row for each transform; a single transform leaves the image as it is.

    """
    settings = (ONLY_FLIPS if params.sequence == "flips" else augment).model_dump()
    if params.transforms == 1:
        return plan(settings, _unchanged(1), axes)
    draws = {"sobol": sobol, "halton": halton, "flips": flips}[params.sequence]
    return plan(settings, draws(settings, params.transforms, params.skip), axes)


def sobol(augment: Mapping[str, Any], count: int, skip: int) -> dict[str, Floats]:
    """Draws of the image as it is, then of ``count - 1`` points of a scrambled Sobol sequence.

    Args:
        augment: the keys of ``drgrade.params.Augment``.
        count: number of transforms, at least 2.
        skip: points to leave out at the start.

    Returns:
        Arrays (count,) by name, as from :func:`drgrade.images.augment.draw`.

    """
    end = skip + count - 1
    sequence = qmc.Sobol(ALL_DRAWS, scramble=True, rng=numpy_rng(0, "test-time augmentation"))
    points = sequence.random_base2((end - 1).bit_length())[skip:end]  # scipy warns of other numbers of points
    drawn = changes(augment, points.T)
    return {name: np.concatenate([first, drawn[name]]) for name, first in _unchanged(1).items()}


def halton(augment: Mapping[str, Any], count: int, skip: int) -> dict[str, Floats]:
    """Draws of ``count`` points of the Halton sequence with bases 2 to 29, as in o_O; see :func:`sobol`.

    Dimensions: rotation, shift x and y, the three factors of PCA colour noise, zoom x and y, flip; the tenth,
    shear, is not used in o_O either. All other changes of ``augment`` are off.
    """
    sequence = qmc.Halton(10, scramble=False)
    sequence.fast_forward(1 + skip)  # the sequence starts with 0 in all dimensions
    points = sequence.random(count).T
    uniform = np.full((ALL_DRAWS, count), 0.5)
    uniform[2], uniform[7:9], uniform[NOISE], uniform[ZOOM] = points[0], points[1:3], points[3:6], points[6:8]
    uniform[0] = 1 - points[8]  # o_O flips above one half, we do below the probability
    drawn = changes(augment, uniform)
    return _unchanged(count) | {name: drawn[name] for name in PUBLISHED_CHANGES}


def flips(augment: Mapping[str, Any], count: int, skip: int) -> dict[str, Floats]:
    """Draws of the image as it is and of its mirror images, see :func:`sobol`; nothing else is changed."""
    numbers = np.arange(count)
    return _unchanged(count) | {"flip_x": numbers % 2 == 1, "flip_y": numbers // 2 == 1}


def _unchanged(count: int) -> dict[str, Floats]:
    return {name: np.full(count, value) for name, value in IDENTITY.items()}

"""Mean, standard deviation and principal axes of pixel colours, for normalisation and colour noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drgrade.errors import UserError

if TYPE_CHECKING:
    from drgrade.images.store import Images

Colour = tuple[float, float, float]
"""Red, green and blue, in units of the images' range 0-1."""


@dataclass(frozen=True)
class Statistics:
    """Distribution of pixel colours over a set of images, with the black border; RGB, images in 0-1.

    Attributes:
        mean: channel means.
        std: channel standard deviations.
        axes: principal axes of the standardised colours, the strongest first, each with the length of the
            standard deviation along it. They are scaled back by ``std``, so a factor times an axis is a
            change of colour in units of 0-1.
    """

    mean: Colour
    std: Colour
    axes: tuple[Colour, Colour, Colour]


def _published() -> Statistics:
    """Statistics of the EyePACS training images in o_O, given for grey levels 0-255."""
    mean = np.array([108.64628601, 75.86886597, 54.34005737])
    std = np.array([70.53946096, 51.71475228, 43.03428563])
    directions = [
        [-0.56543481, 0.71983482, 0.40240142],
        [-0.5989477, -0.02304967, -0.80036049],
        [-0.56694071, -0.6935729, 0.44423429],
    ]  # a column for each axis
    return _statistics(mean, std, np.array(directions), np.array([1.65513492, 0.48450358, 0.1565086]))


def _statistics(
    mean: npt.NDArray[np.float64],
    std: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.float64],
) -> Statistics:
    """Convert grey levels 0-255, and axes of standardised colours in columns (3, 3)."""
    first, second, third = map(_colour, (directions * lengths).T * std / 255)
    return Statistics(_colour(mean / 255), _colour(std / 255), (first, second, third))


def _colour(values: npt.NDArray[np.float64]) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue


PUBLISHED = _published()
"""o_O (Kaggle 2015, second place): all EyePACS training images, with their black border."""
EYEPACS = Statistics((0.426, 0.297, 0.213), (0.277, 0.202, 0.169), PUBLISHED.axes)
"""EyePACS at 512 px as in YijinHuang/pytorch-classification; axes of o_O."""


def measure(images: "Images", rows: npt.ArrayLike, batch: int = 16) -> Statistics:
    """Measure the statistics of images, which must be training images only.

    The axes are eigenvectors of the second moment of standardised colours, as in o_O, but of all images at
    once: o_O averages the axes of batches, whose signs may differ. Here the largest component of each axis,
    before it is scaled back, is positive.

    Args:
        images: uint8 RGB (N, S, S, 3).
        rows: indices of the training images, integers (n,).
        batch: images per step; does not affect the result.

    Raises:
        UserError: there is no image, or a channel has the same value everywhere.

    """
    rows = np.asarray(rows)
    total, products, pixels = np.zeros(3), np.zeros((3, 3)), 0
    for start in range(0, len(rows), batch):
        colours = np.asarray(images[rows[start : start + batch]], np.float64).reshape(-1, 3)
        # exact: sums of integers below 2^53, enough for 35,000 images of 2048 px
        total += colours.sum(0)
        products += colours.T @ colours
        pixels += len(colours)
    if not pixels:
        raise UserError("image statistics: no training images; check the split in the index")
    mean = total / pixels
    covariance = products / pixels - np.outer(mean, mean)
    std = np.sqrt(covariance.diagonal())
    if not (std > 0).all():
        raise UserError("image statistics: a colour channel has the same value in all training images")
    # of standardised colours the second moment is the correlation
    squares, directions = np.linalg.eigh(covariance / np.outer(std, std))
    squares, directions = squares[::-1], directions[:, ::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
    return _statistics(mean, std, directions * np.sign(largest), np.sqrt(np.maximum(squares, 0)))

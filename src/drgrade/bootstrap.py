"""Bootstrap confidence intervals: resampling weights of units, and percentiles of the resampled values.

The resampling unit is a patient for graders (both eyes are correlated), and a photograph for detectors.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.rng import numpy_rng

Floats = NDArray[np.float64]
CHUNK = 50
"""Resamples drawn at a time: limits memory to about 10 MB for 21,000 patients."""


def resample_weights(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn, with replacement, in each resample.

    Yields:
        Arrays (r, units) with r <= 50 and ``resamples`` rows in total; every row sums to ``units``.
        The draws depend on the three arguments only, so that two models get the same resamples.
    """
    rng = numpy_rng(seed, "bootstrap")
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def interval(values: ArrayLike) -> tuple[Floats, Floats]:
    """The 95 % percentile interval of bootstrap values (R, ...); NaN values are ignored.

    Returns:
        Lower and upper ends (...), NaN where no resample has a value.
    """
    values = np.asarray(values, dtype=np.float64)
    columns = values.reshape(len(values), -1)
    known = ~np.isnan(columns).all(axis=0)
    ends = np.full((2, columns.shape[1]), np.nan)
    ends[:, known] = np.nanpercentile(columns[:, known], [2.5, 97.5], axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high

"""The bootstrap of every interval: units drawn with replacement, as weights, and percentiles of the results.

A unit is what is drawn as one: a patient for graders (both eyes are alike), a photograph for detectors.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drgrade.rng import numpy_rng

Floats = NDArray[np.float64]
CHUNK = 50
"""Resamples at a time: bounds memory at 21,000 patients to about 10 MB."""


def resample_weights(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn, with replacement, in each resample.

    Yields:
        (r, units) with r of at most 50 and ``resamples`` in all; every row sums to ``units``.
        The draws depend on the three arguments only, so that two models meet the same resamples.
    """
    rng = numpy_rng(seed, "bootstrap")
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def interval(values: ArrayLike) -> tuple[Floats, Floats]:
    """The central 95 % of bootstrap values (R, ...), by percentiles; NaN values are left out.

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

"""Random numbers that depend on what they are used for, never on previous draws.

Every random generator is keyed by the run's seed and by its use (epoch, index, purpose), so an
interrupted and resumed run draws the same numbers as an uninterrupted one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's step: 2^64 over the golden ratio."""


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one use, from the run's seed and any number of keys."""
    text = "/".join(str(part) for part in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one use; see :func:`derive`."""
    return np.random.default_rng(derive(seed, *keys))


def derive_each(rows: npt.ArrayLike, seed: int, *keys: int | str) -> npt.NDArray[np.int64]:
    """A 63-bit seed for each row of integers (n, m) or (n,), from the run's seed, ``keys`` and the row: (n,).

    Vectorised counterpart of :func:`derive`; its values differ from those.
    """
    keyed = np.asarray(rows, np.int64).astype(np.uint64)
    seeds = np.full(len(keyed), derive(seed, *keys), np.uint64)
    for column in keyed.reshape(len(keyed), -1).T:
        seeds = _mixed(seeds + (column + np.uint64(1)) * np.uint64(GOLDEN))
    return (seeds >> np.uint64(1)).astype(np.int64)


def uniforms(seeds: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """The first ``count`` uniform numbers in [0, 1) of one generator for each seed: (count, n).

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose k-th number is a function of seed and k alone: all
    are drawn at once, and a larger count only adds rows.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN)
    mixed = _mixed(np.asarray(seeds, np.int64).astype(np.uint64) + steps)
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53, np.float64)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function: a bijection whose output bits depend on all bits of the state."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))

"""Random numbers that depend on what is drawn, never on what was drawn before.

Every source of chance is keyed by the run's seed and by where it is used (epoch, index, purpose),
so a run that was killed and resumed draws what the undisturbed run draws.
"""

import hashlib

import numpy as np


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for one use, from the run's seed and any number of keys."""
    text = "/".join(str(part) for part in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one use; see :func:`derive`."""
    return np.random.default_rng(derive(seed, *keys))

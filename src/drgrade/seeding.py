"""What is fixed before a training: the global generators, and torch's threads.

All other random numbers come from :mod:`drgrade.rng`.
"""

import random

import numpy as np

from drgrade.rng import derive as derive
from drgrade.rng import numpy_rng as numpy_rng

TORCH_THREADS = 2
"""Fixed, never the machine's count: sums over 1, 2 and 4 threads differ in their last bits."""


def seed_everything(seed: int, *keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch, and fix torch's threads."""
    import torch

    value = derive(seed, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    torch.set_num_threads(TORCH_THREADS)

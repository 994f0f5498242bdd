"""What is fixed before a training: the global generators, and torch's threads.

All other random numbers come from :mod:`drgrade.rng`.
"""

import os
import random

import numpy as np

from drgrade.errors import UserError
from drgrade.rng import derive as derive
from drgrade.rng import numpy_rng as numpy_rng

THREADS = "DRGRADE_THREADS"
"""Environment variable: torch's threads in each process."""


def torch_threads() -> int:
    """Threads of torch: 2, or what the environment says, but never the machine's number of cores by itself:
    sums over 1, 2 and 4 threads differ in their last bits.

    Raises:
        UserError: the environment's value is no such number.
    """
    text = os.environ.get(THREADS, "2")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{THREADS}: must be an integer >= 1, not {text!r}; correct or unset it")
    return int(text)


def seed_everything(seed: int, *keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch, and fix torch's threads."""
    import torch

    value = derive(seed, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    torch.set_num_threads(torch_threads())

"""Seed the global random generators and fix the number of torch threads before a training.

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
    """Number of torch threads: ``DRGRADE_THREADS``, or 2. It does not depend on the number of CPU cores,
    because sums over 1, 2 and 4 threads differ in their last bits.

    Raises:
        UserError: the environment variable is no integer of at least 1.
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

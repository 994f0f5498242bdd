"""Memory settings for running a network on the CPU."""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Make glibc keep freed memory for the next batch instead of returning it to the kernel.

    Otherwise much of a step's time on a CPU is spent on page faults for newly mapped activations. Results do
    not change; the process stays at its peak size. Does nothing if there is a GPU, or no glibc.
    """
    import torch

    if torch.cuda.is_available():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)  # never

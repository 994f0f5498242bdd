"""Memory settings for running a network on the CPU."""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Tell glibc to keep what is freed for the next batch instead of handing it back to the kernel.

    Otherwise much of a step on a CPU goes into page faults of activations that are mapped anew. Results do
    not change; the process keeps its largest size. Nothing happens where there is a GPU, or no glibc.
    """
    import torch

    if torch.cuda.is_available():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)  # never

"""Memory: settings for running a network on the CPU, and the peak that a training needs."""

import ctypes
import resource
import sys

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


def reset_peak_memory() -> None:
    """Start measuring the peak on a GPU; on a CPU it is always that of the whole process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Peak memory in GB (1e9 bytes): of tensors on the GPU; without one, resident memory of the process."""
    torch = sys.modules.get("torch")  # what does not use it need not wait for its import
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

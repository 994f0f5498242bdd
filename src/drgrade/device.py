"""The device that networks run on, and its numerical precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from drgrade.seeding import torch_threads


def device() -> torch.device:
    """The CUDA device if there is one, otherwise the CPU, for which torch's number of threads is fixed.

    Snakemake gives a job as many OpenMP threads as its rule has; with another number, sums end in other
    digits.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(torch_threads())
    return torch.device("cpu")


def half_precision() -> torch.dtype | None:
    """The 16-bit type of mixed precision: bfloat16 where the GPU has it, else float16; None on a CPU.

    Emulated bfloat16 does not count.
    """
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast() -> AbstractContextManager[object]:
    """Context manager for mixed precision on a GPU; changes nothing on a CPU."""
    dtype = half_precision()
    return nullcontext() if dtype is None else torch.autocast("cuda", dtype)


def exact(target: torch.device) -> AbstractContextManager[object]:
    """Context manager for full precision, also within a trainer's mixed precision.

    Needed for augmentation: a colour matrix product in bfloat16 is off by up to 1.5 grey levels.
    """
    return torch.autocast(target.type, enabled=False)


def use_fast_kernels() -> None:
    """Enable cuDNN's benchmark mode and TensorFloat-32 matrix products on a GPU.

    Benchmarking pays because batches have one size; TensorFloat-32 keeps 10 bits of the mantissa, bfloat16
    7. Nothing changes on a CPU.
    """
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

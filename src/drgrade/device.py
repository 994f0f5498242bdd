"""The device that networks run on, and the arithmetic it is fastest in."""

from contextlib import AbstractContextManager, nullcontext

import torch


def device() -> torch.device:
    """The accelerator, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.dtype | None:
    """The 16-bit type of mixed precision: bfloat16 where the GPU has it, else float16; None on a CPU.

    A GPU that only emulates bfloat16 does not have it.
    """
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast() -> AbstractContextManager[object]:
    """Mixed precision for what runs inside on a GPU; nothing on a CPU, whose results stay as they are."""
    dtype = half_precision()
    return nullcontext() if dtype is None else torch.autocast("cuda", dtype)


def exact(target: torch.device) -> AbstractContextManager[object]:
    """Full precision for what runs inside, whatever mixed precision a trainer has switched on around it.

    For augmentation: a matrix product of colours in bfloat16 is up to 1.5 grey levels off.
    """
    return torch.autocast(target.type, enabled=False)


def use_fast_kernels() -> None:
    """Let a GPU choose its convolutions by trial, and multiply float32 matrices as TensorFloat-32.

    The trial pays because batches have one size; TensorFloat-32 keeps 10 bits of the mantissa where mixed
    precision keeps 7. Nothing changes on a CPU.
    """
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

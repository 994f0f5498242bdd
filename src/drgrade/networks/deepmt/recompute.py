"""Gradient checkpointing: activations of a block are computed again in the backward pass, not stored."""

from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor) -> Tensor:
    """Output of a block without randomness, whose activations are not stored for the backward pass.

    Results, gradients (also second ones) and BatchNorm statistics are those of ``block(*inputs)``.
    """
    output: Tensor = checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), StatisticsKept(block)),
    )
    return output


class StatisticsKept:
    """Context manager, also for several uses: BatchNorm does not update the running statistics of a block.

    A block that is computed twice for one batch would otherwise count the batch twice.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None  # the share of the batch, and the counter

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter

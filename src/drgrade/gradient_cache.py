"""Exact gradients of contrastive losses over batches that do not fit in memory.

Gradient accumulation over small batches, as for other losses, would lose most negatives. The gradient
cache (Gao et al., RepL4NLP 2021, arXiv 2101.06983) embeds all chunks without keeping activations, computes
the gradient of the loss with respect to the embeddings, and runs each chunk again to backpropagate it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def chunked_backward(
    network: nn.Module,
    chunks: Sequence[torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
) -> torch.Tensor:
    """Accumulate the parameters' gradients of ``loss_of(network(all chunks))``, one chunk at a time.

    Exact up to rounding; dropout and the like draw the same numbers in both passes. BatchNorm normalises
    each chunk by itself, as each GPU would without synchronisation, and updates its running statistics once
    per chunk: a network with BatchNorm gives the result of separate chunks, not of one large batch. A step
    costs one additional forward pass.

    In a :class:`~drgrade.training.Module` set ``automatic_optimization = False``, pass
    ``backward=self.manual_backward`` and step optimiser and schedule in ``training_step``.

    Args:
        network: maps (B_i, ...) to embeddings (B_i, D), each row independently except for BatchNorm.
        chunks: inputs, whose rows in order are the batch; iterated over twice.
        loss_of: scalar loss of the embeddings (B, D) of all rows, which are at least float32.
        backward: backpropagates a scalar to the parameters.

    Returns:
        The loss, detached from the graph.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    chances, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            chances.append(_chance(chunk.device))
            parts.append(network(chunk))
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    # otherwise some versions of torch (issue 65766) reuse below the weights that were cast under no_grad
    torch.clear_autocast_cache()
    embeddings = torch.cat(parts)
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).requires_grad_()
    loss = loss_of(embeddings)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    for chunk, chance, part in zip(
        chunks, chances, gradient.split([len(part) for part in parts]), strict=True
    ):
        _replay(chunk.device, chance)
        backward((network(chunk).to(part.dtype) * part).sum())
    return loss.detach()


def _chance(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _replay(device: torch.device, chance: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(chance[0])
    if chance[1] is not None:
        torch.cuda.set_rng_state(chance[1], device)

"""Contrastive losses over batches that do not fit in memory, exactly.

Adding up gradients of small batches, as for other losses, would take most negatives away. The gradient
cache (Gao et al., RepL4NLP 2021, arXiv 2101.06983) embeds all chunks without keeping activations, finds
the gradient of the loss with respect to the embeddings, and runs each chunk again to carry it on.
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
    """Add to the parameters' gradients those of ``loss_of(network(all chunks))``, a chunk at a time.

    Exact up to rounding; dropout and the like draw the same in both passes. BatchNorm normalises each
    chunk by itself, as each GPU would without synchronisation, and counts it once in its running
    statistics: with it the result is that of chunks joined after the network, not of one big batch.
    A step costs one forward pass more.

    In a :class:`~drgrade.training.Module` set ``automatic_optimization = False``, pass
    ``backward=self.manual_backward`` and step optimiser and schedule in ``training_step``.

    Args:
        network: (B_i, ...) to embeddings (B_i, D); every row by itself, BatchNorm apart.
        chunks: inputs, whose rows in order are the batch; asked for twice.
        loss_of: scalar loss of the embeddings (B, D) of all rows, at least float32.
        backward: carries a scalar's gradient to the parameters.

    Returns:
        The loss, without its graph.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    chances, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            chances.append(_chance(chunk.device))
            parts.append(network(chunk))
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    # versions of torch (its issue 65766) would below take weights again that were cast without a gradient
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

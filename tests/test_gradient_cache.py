"""Chunks through the gradient cache give the gradients of the whole batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from timm import create_model
from torch import nn

from drgrade.gradient_cache import chunked_backward


def nt_xent(embeddings: torch.Tensor) -> torch.Tensor:
    return NTXentLoss(0.2)(*embeddings.chunk(2))


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in network.named_parameters()}
    network.zero_grad()
    return found


def joined(network: nn.Module, chunks, loss_of) -> torch.Tensor:
    """The oracle: all chunks in one graph."""
    loss = loss_of(torch.cat([network(chunk) for chunk in chunks]))
    loss.backward()
    return loss.detach()


def test_a_transformers_gradients_are_those_of_one_big_batch():
    torch.manual_seed(0)
    network = create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2, num_classes=8
    )
    batch = torch.randn(10, 3, 32, 32)
    loss = nt_xent(network(batch))
    loss.backward()
    expected = gradients(network)
    torch.testing.assert_close(chunked_backward(network, batch.split(3), nt_xent), loss.detach())
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)
    assert all(value.abs().max() > 1e-4 for name, value in expected.items() if name.endswith("weight"))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**20))
def test_gradients_add_up_whatever_the_chunks(sizes, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)).double()
    chunks = torch.randn(2 * sum(sizes), 5, dtype=torch.float64).split(sizes + sizes)
    joined(network, [torch.cat(chunks)], nt_xent)
    expected = gradients(network)
    for _ in range(2):  # added to what is there, as backward does
        chunked_backward(network, chunks, nt_xent)
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, 2 * expected[name])


def test_chance_is_drawn_alike_in_both_passes_and_batchnorm_counts_each_chunk_once():
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))

    chunks = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).split(4)
    one, other = fresh(), fresh()
    torch.manual_seed(2)
    loss = joined(one, chunks, nt_xent)
    after = torch.rand(3)
    torch.manual_seed(2)
    torch.testing.assert_close(chunked_backward(other, chunks, nt_xent), loss)
    assert torch.equal(torch.rand(3), after)
    for (name, value), expected in zip(gradients(other).items(), gradients(one).values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)
    for value, expected in zip(other.buffers(), one.buffers(), strict=True):
        assert torch.equal(value, expected)
    assert other[1].num_batches_tracked == 3


def test_one_big_batch_through_batchnorm_is_another_loss():
    """What the docstring warns of: statistics are the chunk's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    batch = torch.randn(12, 5)
    whole = nt_xent(network(batch)).detach()
    assert chunked_backward(network, batch.split(4), nt_xent) != pytest.approx(float(whole), abs=1e-3)


def test_weights_cast_by_autocast_keep_their_gradients():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))
    batch = torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        joined(network, batch.split(4), lambda embeddings: nt_xent(embeddings.float()))
    expected = gradients(network)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_backward(network, batch.split(4), nt_xent)
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.02)

"""Pooled responses of several layers, against plain loops over what timm returns."""

import numpy as np
import pytest
import torch

from drgrade.encoders import create_encoder
from drgrade.grading.features import Frozen
from drgrade.grading.pooled import POOLINGS, FrozenRegression, PooledLayers

RESPONSES = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 150)))


def rows(function) -> np.ndarray:
    return np.array([[function(row) for row in image] for image in RESPONSES.numpy()])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mean", np.mean),
        ("std", np.std),
        ("max", np.max),
        ("gem", lambda row: np.mean(np.where(row > 0, row, 1e-6) ** 3) ** (1 / 3)),
        ("top", lambda row: np.sort(row)[-3:].mean()),  # 3 of 150
        ("bottom", lambda row: np.sort(row)[:3].mean()),
    ],
)
def test_poolings(name, function):
    np.testing.assert_allclose(POOLINGS[name](RESPONSES).numpy(), rows(function), rtol=1e-4, atol=1e-6)


def test_one_position_is_pooled_too():
    for pooled in POOLINGS.values():
        assert torch.isfinite(pooled(RESPONSES[..., :1])).all()


@pytest.mark.parametrize(
    ("name", "layers", "pooling"),
    [
        ("test_efficientnet", [-3, -1], ["mean", "max"]),
        ("test_vit", [0, -1], ["mean", "token"]),
        ("test_resnet", [1], ["std"]),
    ],
)
def test_layers_stand_one_after_the_other(name, layers, pooling):
    encoder = create_encoder(name, "random").eval()
    batch = torch.randn(2, 3, 64, 64)
    found = PooledLayers(encoder, layers, pooling)(batch)
    wanted = []
    for layer in layers:
        image, prefix = encoder.forward_intermediates(batch, intermediates_only=True)[layer], None
        if name == "test_vit":
            image, prefix = encoder.forward_intermediates(
                batch, intermediates_only=True, return_prefix_tokens=True
            )[layer]
        for one in pooling:
            wanted.append(prefix[:, 0] if one == "token" else POOLINGS[one](image.flatten(2)))
    torch.testing.assert_close(found, torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-5)


def test_the_regression_is_linear_in_the_features():
    pooled = PooledLayers(create_encoder("test_efficientnet", "random"), [-2, -1], ["mean"])
    frozen = Frozen("test_efficientnet", pooled, 32)
    network, batch = FrozenRegression(frozen), torch.randn(2, 3, 32, 32)
    assert frozen.width == network.head.in_features
    assert not frozen.train().training
    torch.testing.assert_close(network(batch), network.head(frozen(batch)).squeeze(1))
    assert [name for name, one in network.named_parameters() if one.requires_grad] == [
        "head.weight",
        "head.bias",
    ]

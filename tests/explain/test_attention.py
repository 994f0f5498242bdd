"""Attention maps against weights computed from queries and keys by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drgrade.encoders import create_encoder
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, InGrades, PerHead

ATTENTION = EXPLAINERS.get("attention")
SIZES = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}


class Regressor(nn.Module):
    def __init__(self, name: str = "vit_tiny_patch16_224", **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = create_encoder(name, "random", **options)
        self.head = nn.Linear(self.encoder.num_features, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.encoder(batch)).squeeze(1)


def images(count: int = 3, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def by_hand(model: Regressor, batch: Tensor) -> np.ndarray:
    """Softmax of scaled products of the class token's query with all keys, in double precision."""
    attention = model.encoder.blocks[-1].attn
    seen: list[Tensor] = []
    handle = attention.qkv.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        model.eval()(batch)
        queries, keys, _ = seen[0].unflatten(2, (3, attention.num_heads, -1)).unbind(2)
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    handle.remove()
    queries, keys = queries.double().numpy(), keys.double().numpy()
    products = np.einsum("bkd,bnkd->bkn", queries[:, 0], keys) / np.sqrt(queries.shape[-1])
    weights = np.exp(products)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"reg_tokens": 2}])
def test_weights_of_the_class_token_on_patches(options):
    model, batch = Regressor(**SIZES, **options), images()
    attention = model.encoder.blocks[-1].attn
    assert attention.fused_attn  # so that the weights are not there unless asked for
    model.head.weight.data.zero_()  # the grade plays no part
    heads = ATTENTION().heads(model, batch)
    prefix = 1 + options.get("reg_tokens", 0)
    assert (heads.shape, heads.dtype) == ((3, 3, 4, 4), np.float32)
    np.testing.assert_allclose(heads.reshape(3, 3, 16), by_hand(model, batch)[..., prefix:], rtol=1e-4)
    assert attention.fused_attn
    assert not attention.attn_drop._forward_hooks


def test_the_heat_map_is_the_mean_of_heads_with_maximum_1(monkeypatch):
    model, batch = Regressor(**SIZES), images(1)
    weights = np.zeros((1, 2, 4, 4), np.float32)
    weights[0, 0, 1, 2], weights[0, 1, 3, 0] = 0.6, 0.2
    monkeypatch.setattr(ATTENTION, "heads", lambda *_: weights)
    heat = ATTENTION().heat(model, batch)
    assert heat.shape == (1, 64, 64)
    # bilinear: 1/32 pixel from the middle of a cell of 16 pixels in either direction
    near = (31 / 32) ** 2
    np.testing.assert_allclose(heat[0, 23:25, 39:41], near, rtol=1e-5)
    assert heat[0, -1, 0] == pytest.approx(1 / 3)


def test_it_has_heads_and_no_unit():
    assert isinstance(ATTENTION(), PerHead)
    assert not isinstance(ATTENTION(), InGrades)
    assert not isinstance(EXPLAINERS.get("cam")(), PerHead)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("test_resnet", {}, "ResNet has no attention blocks"),
        ("vit_tiny_patch16_224", SIZES | {"class_token": False, "global_pool": "avg"}, "has no class token"),
    ],
)
def test_networks_without_such_attention_are_refused(name, options, reason):
    with pytest.raises(UserError) as refused:
        ATTENTION().heads(Regressor(name, **options), images())
    line = str(refused.value)
    assert line.startswith("explanations.<name>.method: attention needs a vision transformer")
    assert reason in line
    assert "\n" not in line

"""The identity of the map's mean and the score, orientation and placement, and what is refused."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from drgrade.encoders import create_encoder, width
from drgrade.errors import UserError
from drgrade.explain.base import EXPLAINERS, InGrades, over_input
from drgrade.explain.ram import check_mean
from drgrade.grading.features import Frozen
from drgrade.grading.probe import Probe
from drgrade.grading.regression import EncoderWithHead, Scores
from drgrade.networks import o_o

RAM = EXPLAINERS.get("ram")
CORNERS = [(20, 28), (100, 36), (28, 84), (92, 100)]
"""Places (x, y) of a blob in an input of 128 pixels; no two are mirror images."""


class Network(nn.Module):
    """An encoder with some head, in the form of a grader's network."""

    def __init__(self, encoder: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head or nn.Linear(width(encoder), 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(batch)).squeeze(1)

    def score(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


def blob(x: int, y: int, side: int = 128) -> torch.Tensor:
    batch = torch.zeros(1, 3, side, side)
    batch[..., y - 4 : y + 4, x - 4 : x + 4] = 1
    return batch


def hottest(heat: np.ndarray) -> tuple[float, float]:
    """Mean place (x, y) of the hottest pixels of a map."""
    rows, columns = np.nonzero(heat > heat.max() - 1e-6)
    return columns.mean() + 0.5, rows.mean() + 0.5


@cache
def averaging(name: str) -> Network:
    """A network of o_O that only averages and takes maxima: its map is brightness, blurred."""
    network = Network(create_encoder(name, "random"))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    return network


ENCODERS = {
    "resnet18": {},
    "tf_efficientnet_lite0": {},
    "test_nfnet": {},
    "swin_tiny_patch4_window7_224": {  # feature maps (B, h, w, C)
        "img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2),
    },
    "test_vit": {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2},  # tokens (B, N, C)
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_the_mean_of_a_map_is_the_score(name):
    torch.manual_seed(0)
    model = Network(create_encoder(name, "random", **ENCODERS[name])).train()  # it puts dropout off
    batch = torch.randn(3, 3, 64, 64)
    values = RAM().values(model, batch)
    assert values.dtype == np.float32
    assert values.shape[1] == values.shape[2] > 1
    with torch.no_grad():
        score = model.eval()(batch).numpy()
    assert np.ptp(score) > 1e-4
    np.testing.assert_allclose(values.mean(axis=(1, 2)), score, atol=1e-5)
    spread = values.std(axis=(1, 2))
    assert (spread > 1e-4).all()


def test_a_map_is_the_weighted_feature_map_and_the_bias():
    """The published formula in NumPy."""
    torch.manual_seed(0)
    model = Network(create_encoder("test_resnet", "random"))
    batch = torch.randn(10, 3, 64, 64)  # more than one part
    with torch.no_grad():
        features = model.eval().encoder.forward_features(batch).numpy()
    weights, bias = model.head.weight[0].detach().numpy(), model.head.bias.item()
    expected = np.tensordot(features, weights, axes=([1], [0])) + bias
    np.testing.assert_allclose(RAM().values(Scores(model), batch), expected, atol=1e-5)


def test_centre_and_scale_of_a_linear_probe_belong_to_its_unit():
    torch.manual_seed(0)
    probe = Probe(Frozen("test_efficientnet", "random", 64, blocks=True))
    batch = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        features = probe.encoder(batch).numpy()
    probe.adapt(features + 0.3)
    nn.init.normal_(probe.head.weight)
    values = RAM().values(probe, batch)
    scaled = (features - (features + 0.3).mean(axis=0)) / np.sqrt((features + 0.3).var(axis=0).mean())
    score = scaled @ probe.head.weight[0].detach().numpy() + probe.head.bias.item()
    assert np.ptp(score) > 0.1
    np.testing.assert_allclose(values.mean(axis=(1, 2)), score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["o_o_ram_128_5x5", "o_o_ram_128_4x4"])
def test_networks_of_ram(name):
    assert name in o_o.ARCHITECTURES
    torch.manual_seed(0)
    model = Network(create_encoder(name, "random"))
    batch = torch.randn(2, 3, 128, 128)
    values, heat = RAM().values(model, batch), RAM().heat(model, batch)
    with torch.no_grad():
        np.testing.assert_allclose(values.mean(axis=(1, 2)), model(batch).numpy(), atol=1e-5)
    outside = heat.copy()
    outside[:, 8:120, 8:120] = 0
    assert not outside.any()
    assert heat[:, 8:120, 8:120].any()


@pytest.mark.parametrize(("x", "y"), CORNERS)
@pytest.mark.parametrize(("name", "within"), [("o_o_ram_128_5x5_hires", 4), ("o_o_ram_128_5x5", 16)])
def test_a_bright_blob_is_hottest_where_it_is(name, within, x, y):
    """Transposed or mirrored maps, or maps that ignore the margin, would be further off."""
    model = averaging(name)
    values = over_input(RAM().values(model, blob(x, y)), model, 128)[0]
    assert hottest(values) == pytest.approx((x, y), abs=within)


@pytest.mark.parametrize(("x", "y"), CORNERS)
@pytest.mark.parametrize("cut", [0, 8, 16])
def test_the_margin_that_an_encoder_cuts_off_is_cold(blocks, cut, x, y):
    heat = RAM().heat(blocks(weight=4, bias=0.4, cut=cut), blob(x, y))[0]
    assert hottest(heat) == pytest.approx((x, y), abs=3)  # in the outermost block the map is flat
    seen = np.zeros((128, 128), bool)
    seen[cut : 128 - cut, cut : 128 - cut] = True
    np.testing.assert_array_equal(heat > 0, seen)


def test_all_images_have_one_scale(blocks):
    """Grade 4 is 1: what is above or below the grades is clipped, and an image's own range does not count."""
    batch = torch.stack([torch.full((3, 32, 32), value) for value in (-0.5, 0.0, 0.25, 0.5, 1.0, 7.0)])
    heat = RAM().heat(blocks(weight=4), batch)
    expected = np.ones((6, 32, 32)) * np.array([0, 0, 0.25, 0.5, 1, 1])[:, None, None]
    np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert heat.dtype == np.float32


@pytest.mark.parametrize("bias", [-3.0, 3.0])
def test_scores_that_end_in_a_relu_are_compared_before_it(bias):
    torch.manual_seed(0)
    network = EncoderWithHead(create_encoder("test_resnet", "random"), "smooth_l1", relu_output=True)
    nn.init.constant_(network.head.bias, bias)
    batch = torch.randn(2, 3, 64, 64)
    mean = RAM().values(Scores(network), batch).mean(axis=(1, 2))
    with torch.no_grad():
        features, score = network.encoder(batch), network(batch).numpy()
    np.testing.assert_allclose(mean, network.head(features)[:, 0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(score, np.maximum(mean, 0), atol=1e-5)
    assert (mean > 0).all() == (bias > 0)


def test_small_differences_are_found():
    maps = torch.tensor([[[1.0, 3.0]], [[100.0, 300.0]]])
    check_mean(maps, torch.tensor([2.00005, 200.005]))
    check_mean(maps, torch.tensor([[2.0], [200.0]]))
    for wrong in ([2.001, 200.0], [2.0, 200.1], [float("nan"), 200.0]):
        with pytest.raises(UserError, match="the mean of its map differs"):
            check_mean(maps, torch.tensor(wrong))
    with pytest.raises(UserError, match="differs"):
        check_mean(-maps, torch.tensor([-2.1, 0.0]))  # only exactly 0 is a clipped score


REFUSED = {
    "class token": ("test_vit", {}, None, "that of its class token"),
    "norm after the mean": ("test_convnext", {}, None, "differs from its score"),
    "layer after the mean": ("mobilenetv3_small_050", {}, nn.Linear(1024, 1), "takes 1024 features"),
    "maximum": ("test_resnet", {"global_pool": "max"}, None, "differs from its score"),
    "RMS pooling": ("o_o_128_5x5", {}, None, "takes 512 features"),
    "five classes": ("test_resnet", {}, nn.Linear(96, 5), "not one linear unit"),
    "hidden layer": ("test_resnet", {}, nn.Sequential(nn.ReLU(), nn.Linear(96, 1)), "not one linear unit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused(case):
    torch.manual_seed(0)
    name, options, head, reason = REFUSED[case]
    encoder = create_encoder(name, "random", **options)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):  # the initial weights 1 and biases 0 could hide a norm
            nn.init.uniform_(module.weight)
    side = 128 if name.startswith("o_o") else 160
    with pytest.raises(UserError, match=rf"^explanations.<name>.method: ram needs .*{reason}.*; use cam"):
        RAM().values(Network(encoder, head), torch.randn(2, 3, side, side))


def test_ordinal_scores_and_networks_without_a_map_are_refused(blocks):
    model = Network(nn.Conv2d(3, 2, 8), nn.Linear(2, 1))
    with pytest.raises(UserError, match="Conv2d has no feature map"):
        RAM().values(model, torch.zeros(1, 3, 32, 32))

    ordinal = blocks()
    ordinal.score = lambda outputs: (outputs[:, None] - torch.arange(4)).sigmoid().sum(dim=1)
    with pytest.raises(UserError, match="differs"):
        RAM().values(Scores(ordinal), torch.rand(2, 3, 32, 32))


def test_only_ram_is_in_grades():
    assert isinstance(RAM(), InGrades)
    assert not isinstance(EXPLAINERS.get("cam")(), InGrades)

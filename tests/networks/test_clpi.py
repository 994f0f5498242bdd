"""Oracles: the layers of CLPI's released code, and arithmetic."""

import numpy as np
import pytest
import timm
import torch
from timm.models.densenet import DenseNet
from torch import nn
from torch.nn import functional as F

import drgrade.networks.clpi as clpi
from drgrade.encoders import create_encoder, forward_blank, normalisation, width
from drgrade.errors import UserError
from drgrade.networks.clpi import CELL, Encoder, LesionNet, enlarged, load_densenet

THIN = clpi.Architecture(4, (1, 1, 1, 1))


def thin(**options) -> Encoder:
    """An encoder with a small trunk, whose batch normalisation has seen other values than 0 and 1."""
    torch.manual_seed(0)
    encoder = Encoder(THIN, **options)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return encoder.eval()


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def on_meta(name: str) -> Encoder:
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0).eval()


def test_parameters_of_the_lesion_network_are_the_published_ones():
    kernels = [
        32 * 3 * 25, 32 * 32 * 4, 64 * 32 * 4, 128 * 64 * 4, 256 * 128 * 4, 512 * 256 * 4, 1024 * 512 * 4,
        1024 * 1024, 1024 * 1024, 4 * 1024,
    ]  # fmt: skip
    norms = 2 * (32 + 32 + 64 + 128 + 256 + 512 + 3 * 1024)
    assert count(LesionNet()) == sum(kernels) + norms == 4_901_216 + 8_192 == 4_909_408


def test_parameters_of_the_whole_network():
    encoder = on_meta("clpi_densenet121")
    trunk = count(timm.create_model("densenet121", num_classes=0)) + 9 * 64 * 7 * 7  # nine more channels
    mixing = 1025 * 1024 + 2 * 1024
    assert (count(encoder.trunk), count(encoder.mix)) == (trunk, mixing)
    assert count(encoder) == 4_909_408 + trunk + mixing == 12_943_136
    assert encoder.trunk.conv0.weight.shape == (64, 12, 7, 7)


@pytest.mark.parametrize(("side", "cells"), [(64, 1), (128, 2), (1024, 16)])
def test_a_cell_is_64_pixels(side, cells):
    encoder = on_meta("clpi_densenet121")
    features, maps = encoder.forward_with_maps(torch.zeros(1, 3, side, side, device="meta"))
    assert (features.shape, maps.shape) == ((1, 1024, cells, cells), (1, 4, cells, cells))
    assert encoder.attended(torch.zeros(1, 3, side, side), torch.ones(1, 4, cells, cells)).shape[1:] == (
        12, side // 2, side // 2,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["clpi_densenet121", "clpi_densenet161", "clpi_densenet264"])
def test_every_network_ends_in_1024_channels(name):
    encoder = on_meta(name)
    assert width(encoder) == 1024
    assert forward_blank(encoder, name, 64).shape == (1, 1024)
    assert normalisation(name) == ([0, 0, 0], [1, 1, 1])


def test_other_sizes_are_refused_in_one_line():
    with pytest.raises(UserError, match="multiple of 64 pixels"):
        forward_blank(create_encoder("clpi_densenet121", None), "clpi_densenet121", 96)
    with pytest.raises(ValueError, match="no classifier"):
        Encoder(THIN, num_classes=5)


def test_probabilities_of_a_cell_sum_to_one():
    maps = thin().lesions.maps(images(128))
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 2, 2), atol=1e-6, rtol=0)


def test_a_patch_is_a_cell_of_an_image_that_is_black_around_it():
    lesions, patch = thin().lesions, images(CELL)
    whole = torch.zeros(2, 3, 192, 192)
    whole[..., 64:128, 128:] = patch
    torch.testing.assert_close(lesions(whole)[..., 1, 2], lesions(patch)[..., 0, 0], atol=1e-4, rtol=1e-5)


def test_a_cell_sees_two_pixels_around_its_patch_and_no_more():
    lesions, whole = thin().lesions, images(192, 1)
    first = lesions.layers[0]
    x = F.mish(first.norm(F.conv2d(whole[..., 62:130, 62:130], first.conv.weight)))
    for layer in lesions.layers[1:]:
        x = layer(x)
    torch.testing.assert_close(lesions.head(x)[..., 0, 0], lesions(whole)[..., 1, 1], atol=1e-4, rtol=1e-5)
    other = whole.clone()
    other[..., 62, 100] += 1
    other[..., 10, 10] += 1
    changed = (lesions(other) - lesions(whole)).abs().amax(1)[0] > 1e-4
    assert changed.tolist() == [[True, True, False], [False, True, False], [False, False, False]]


def test_input_channels_are_the_image_times_one_plus_each_map():
    maps = torch.rand(2, 4, 2, 2).softmax(1)
    found = thin().attended(images(128), maps).numpy()
    half = images(128).numpy().reshape(2, 3, 64, 2, 64, 2).mean((3, 5))
    cells = maps.numpy().repeat(32, axis=2).repeat(32, axis=3)
    for place in range(4):
        expected = half * (1 + cells[:, place : place + 1])
        np.testing.assert_allclose(found[:, 3 * place : 3 * place + 3], expected, rtol=1e-5)
    plain = thin(attention=False).attended(images(128), maps).numpy()
    np.testing.assert_allclose(plain, np.tile(half, (1, 4, 1, 1)), rtol=1e-5)


def test_released_resizing_aligns_the_corners():
    maps = torch.rand(1, 4, 16, 16)
    found = enlarged(maps, 512, align_corners=True)
    rows = [int(row * (15 / 511) + 0.5) for row in range(512)]
    np.testing.assert_array_equal(found.numpy(), maps.numpy()[:, :, rows][:, :, :, rows])
    assert rows.count(0) == 18  # half a cell at the edge, and 34 pixels a cell inside
    assert rows.count(7) == 34
    encoder, x = thin(align_corners=True), images(128)
    attended = encoder.attended(x, maps := encoder.lesions.maps(x))
    corners = np.s_[..., ::63, ::63]
    expected = x[..., ::127, ::127] * (1 + maps[:, 2:3])
    torch.testing.assert_close(attended[:, 6:9][corners], expected)


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"fusion": False}, False),
        ({"fusion": False, "attn_stopgrad": False}, True),
        ({"fusion": True}, True),
        ({"fusion": False, "attn_stopgrad": False, "attention": False}, False),
    ],
    ids=str,
)
def test_ways_of_the_gradient_of_grades_into_the_lesion_network(options, reached):
    encoder = thin(**options)
    encoder(images(64)).sum().backward()
    gradients = [parameter.grad for parameter in encoder.lesions.parameters()]
    if reached:
        assert all(gradient is not None for gradient in gradients)
        assert gradients[0].abs().max() > 0
    else:
        assert all(gradient is None for gradient in gradients)
    assert encoder.trunk.conv0.weight.grad.abs().max() > 0


def test_the_last_channel_of_the_mixing_is_the_probability_of_any_lesion():
    encoder, x = thin(), images(128)
    with torch.no_grad():
        encoder.mix.conv.weight.zero_()
        encoder.mix.conv.weight[7, -1] = 3.0
        norm = encoder.mix.norm
        features, maps = encoder.forward_with_maps(x)
        expected = (3 * maps[:, 1:].sum(1) - norm.running_mean[7]) / (norm.running_var[7] + 1e-5).sqrt()
    torch.testing.assert_close(features[:, 7], expected.relu())
    torch.testing.assert_close(encoder(x), features.mean((2, 3)))
    assert thin(fusion=False).mix.conv.in_channels == encoder.mix.conv.in_channels - 1


def test_recomputing_changes_no_gradient_and_no_statistic():
    found = {}
    for recompute in (False, True):
        encoder = thin(recompute=recompute, attn_stopgrad=False).train()
        encoder(images(128)).square().sum().backward()
        found[recompute] = encoder
    for (name, one), other in zip(found[False].named_parameters(), found[True].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), other in zip(found[False].named_buffers(), found[True].buffers(), strict=True):
        if "num_batches" not in name:
            assert torch.equal(one, other), name


def test_without_gradients_a_batch_is_computed_in_parts(monkeypatch):
    encoder, x, seen = thin(), images(64, 5), []
    with torch.no_grad():
        whole = encoder(x)
        monkeypatch.setattr(clpi, "AT_ONCE", 2 * 64**2)
        encoder.lesions.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        torch.testing.assert_close(encoder(x), whole)
        encoder.train()(x)
    encoder.eval()(x)
    assert seen == [2, 2, 1, 5, 5]


def test_mixed_precision_keeps_probabilities_in_full():
    encoder = thin(attn_stopgrad=False).train()
    with torch.autocast("cpu", torch.bfloat16):
        features, maps = encoder.forward_with_maps(images(128))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 2, 2), atol=1e-6, rtol=0)
    features.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert encoder(images(128)).isfinite().all()


def test_weights_of_a_densenet_respond_to_the_plain_image():
    torch.manual_seed(1)
    dense, encoder = DenseNet(*THIN), thin()
    load_densenet(encoder, dense.state_dict())
    x = images(128)
    with torch.no_grad():
        half = F.interpolate(x, (64, 64), mode="bilinear")
        found = encoder.trunk.conv0(encoder.attended(x, encoder.lesions.maps(x)))
        torch.testing.assert_close(found, dense.features.conv0(half), atol=1e-5, rtol=1e-4)
    own, theirs = encoder.trunk.state_dict(), dense.features.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own if name != "conv0.weight")


def test_weights_of_another_network_are_refused():
    dense = DenseNet(4, (1, 1, 2, 1)).state_dict()
    with pytest.raises(UserError, match=r"^features\.denseblock3\.denselayer2\.\S+ does not fit"):
        load_densenet(thin(), dense)
    with pytest.raises(UserError, match="does not fit"):
        load_densenet(thin(), {"conv1.weight": torch.zeros(1)})

"""Oracles: section 5 (table of the six networks) and 13 (RAM) of o_O's published facts, and arithmetic."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from drgrade.encoders import create_encoder, forward_blank, normalisation, width
from drgrade.errors import UserError
from drgrade.explain.cam import last_feature_map
from drgrade.networks.o_o import ARCHITECTURES, Encoder, MaxoutHead, copy_trunk, maxout, rms_pool

TABLE = {  # features, weights of convolutions, untied biases, head, total, sides of the maps
    "o_o_128_5x5": (512, 505_184, 252_160, 1_051_137, 1_808_481, "56 56 27 14 14 14 6 6 6 6"),
    "o_o_128_4x4": (1152, 837_120, 260_960, 1_706_497, 2_804_577, "56 57 28 14 15 14 6 7 6 7"),
    "o_o_256_5x5": (
        1024, 1_979_744, 1_045_888, 1_575_425, 4_601_057, "112 112 55 28 28 28 13 13 13 13 6 6 6 6",
    ),
    "o_o_256_4x4": (
        2304, 3_458_560, 1_070_304, 2_886_145, 7_415_009, "112 113 56 28 29 28 13 14 13 14 6 7 6 7",
    ),
    "o_o_512_5x5": (
        2048, 5_518_688, 4_259_968, 2_624_001, 12_402_657,
        "224 224 111 56 56 56 27 27 27 27 13 13 13 13 6 6 6",
    ),
    "o_o_512_4x4": (
        2048, 5_555_712, 4_285_408, 2_624_001, 12_465_121,
        "224 225 112 56 57 56 27 28 27 28 13 14 13 14 6 5",
    ),
}  # fmt: skip
RMS, RAM = sorted(TABLE), [name for name in ARCHITECTURES if "ram" in name]


def create(name: str, seed: int = 0, **options) -> Encoder:
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, num_classes=0, **options)


def on_meta(name: str, **options) -> Encoder:
    """A network without memory, for shapes and counts."""
    with torch.device("meta"):
        return create(name, **options)


def small(name: str, **options) -> Encoder:
    """A thin network in evaluation mode."""
    return create(name, **{"channels": 4} | options).eval()


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def count(module: nn.Module, ending: str = "") -> int:
    return sum(value.numel() for key, value in module.named_parameters() if key.endswith(ending))


def sides(encoder: Encoder) -> list[int]:
    """Sides of all maps after a convolution or max-pool, in order."""
    found = []
    for layer in list(encoder.trunk)[1:]:
        layer.register_forward_hook(lambda _, __, output: found.append(output.shape[-1]))
    forward_blank(encoder, "o_O", encoder.size)
    return found


@pytest.mark.parametrize("name", RMS)
def test_parameters_and_maps_are_those_of_the_table(name):
    features, weights, biases, head, total, trace = TABLE[name]
    encoder = on_meta(name)
    with torch.device("meta"):
        top = MaxoutHead(features)
    assert (count(encoder, ".weight"), count(encoder, ".bias")) == (weights, biases)
    assert (count(top), count(encoder) + count(top)) == (head, total)
    assert sides(encoder) == [int(side) for side in trace.split()]
    assert forward_blank(encoder, name, encoder.size).shape == (1, features)
    assert encoder.num_features == features


@pytest.mark.parametrize(("name", "total"), [("o_o_ram_512_5x5", 9_729_249), ("o_o_ram_512_4x4", 9_841_633)])
def test_parameters_of_ram_are_the_published_ones(name, total):
    encoder = on_meta(name)
    assert count(encoder) + count(nn.Linear(encoder.num_features, 1)) == total


def test_batch_norm_of_ram_normalises_all_but_the_last_map():
    plain, normed = on_meta("o_o_ram_512_5x5"), on_meta("o_o_ram_512_5x5", batch_norm=True)
    assert count(normed) - count(plain) == 3_846
    assert isinstance(normed.trunk.norm, nn.BatchNorm2d)
    assert isinstance(normed.trunk.conv12.norm, nn.BatchNorm2d)
    assert isinstance(normed.trunk.conv13.norm, nn.Identity)


@pytest.mark.parametrize(("name", "shape"), [
    ("o_o_ram_128_5x5", (128, 6)), ("o_o_ram_128_4x4", (128, 7)),
    ("o_o_ram_256_5x5", (256, 6)), ("o_o_ram_256_4x4", (256, 7)),
    ("o_o_ram_512_5x5", (512, 6)), ("o_o_ram_512_4x4", (512, 5)),
    ("o_o_ram_128_5x5_hires", (128, 54)), ("o_o_ram_256_5x5_hires", (128, 56)),
    ("o_o_ram_512_5x5_hires", (256, 56)),
])  # fmt: skip
def test_last_maps_of_ram(name, shape):
    encoder = on_meta(name)
    maps = encoder.forward_features(torch.zeros(1, 3, encoder.size, encoder.size, device="meta"))
    assert maps.shape == (1, shape[0], shape[1], shape[1])
    assert encoder.num_features == shape[0]


def test_net_5_of_ram_pads_its_first_and_third_convolution_by_one():
    assert sides(on_meta("o_o_ram_512_5x5"))[:4] == [223, 223, 111, 55]


def test_timm_knows_normalisation_and_image_size():
    assert set(ARCHITECTURES) == set(timm.list_models("o_o_*"))
    for name, architecture in ARCHITECTURES.items():
        assert timm.get_pretrained_cfg(name).input_size == (3, architecture.size, architecture.size)
        mean, std = normalisation(name)
        assert np.multiply(mean, 255) == pytest.approx([108.64628601, 75.86886597, 54.34005737])
        assert np.multiply(std, 255) == pytest.approx([70.53946096, 51.71475228, 43.03428563])


@pytest.mark.parametrize(("name", "seen"), [("o_o_128_4x4", 112), ("o_o_ram_256_5x5", 224)])
def test_only_the_central_seven_eighths_are_seen(name, seen):
    encoder = small(name)
    margin = encoder.margin(encoder.size)
    assert encoder.size - 2 * margin == seen == encoder.crop_pct * encoder.size
    batch = images(encoder.size, 1)
    border, inside = batch.clone(), batch.clone()
    border[..., :margin, :] = border[..., -margin:, :] = border[..., :margin] = border[..., -margin:] = 9
    inside[..., margin, margin] = 9
    with torch.no_grad():
        assert torch.equal(encoder(border), encoder(batch))
        assert not torch.equal(encoder(inside), encoder(batch))


@pytest.mark.parametrize("name", ["o_o_128_5x5", "o_o_ram_128_4x4"])
def test_untied_biases_refuse_other_sizes_in_one_line(name):
    encoder = create_encoder(name, None, channels=2)
    assert forward_blank(encoder, name, 128).shape == (1, width(encoder))
    with pytest.raises(UserError) as error:
        forward_blank(encoder, name, 127)
    assert "untied biases need 128 pixels; set tied_biases for other sizes" in str(error.value)
    with pytest.raises(RuntimeError, match="128 pixels"):
        encoder(torch.zeros(1, 3, 128, 144))


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["o_o_128_5x5", "o_o_128_4x4", "o_o_ram_128_5x5"]), st.data())
def test_tied_biases_take_any_size_and_keep_the_number_of_features(name, data):
    encoder = small(name, channels=2, tied_biases=True)
    height, side = (data.draw(st.integers(96, 200)) for _ in range(2))
    assert encoder(torch.zeros(1, 3, height, side)).shape == (1, encoder.num_features)


def test_untied_biases_that_are_equal_act_as_tied_ones():
    untied, tied = small("o_o_256_4x4"), small("o_o_256_4x4", tied_biases=True)
    assert count(untied, ".bias") > count(tied, ".bias") == 4 * (2 * 1 + 3 * 2 + 3 * 4 + 3 * 8)
    assert torch.allclose(untied(images(256)), tied(images(256)), atol=1e-6)


def test_every_position_has_its_own_bias():
    encoder = small("o_o_ram_128_5x5")
    before = encoder.forward_features(images(128))
    with torch.no_grad():
        encoder.trunk.conv8.bias[0, 3, 2, 5] += 100
    changed = (encoder.forward_features(images(128)) != before).nonzero().tolist()
    assert changed == [[0, 3, 2, 5], [1, 3, 2, 5]]


@pytest.mark.parametrize("name", ["o_o_128_5x5", "o_o_128_4x4"])
def test_initial_weights_are_orthogonal_and_follow_the_global_generator(name):
    one, again, other = create(name, 3), create(name, 3), create(name, 4)
    for layer in list(one.trunk.children()):
        if isinstance(layer, nn.Conv2d):
            flat = layer.weight.detach().flatten(1)
            assert torch.allclose(flat @ flat.T, torch.eye(len(flat)), atol=1e-5)
            assert layer.bias.eq(0.05).all()
    assert torch.equal(one.trunk.conv2.weight, again.trunk.conv2.weight)
    assert not torch.equal(one.trunk.conv2.weight, other.trunk.conv2.weight)


def test_leak_is_the_slope_below_zero():
    encoder = small("o_o_ram_128_5x5", leak=0.33)
    with torch.no_grad():
        encoder.trunk.conv8.weight.zero_()
        encoder.trunk.conv8.bias.fill_(-1)
    assert encoder(images(128)).detach().numpy() == pytest.approx(-0.33)


@pytest.mark.parametrize(("side", "grid", "stride"), [(6, 2, 3), (7, 3, 2), (5, 2, 2)])
def test_rms_pool_is_the_root_mean_square_of_windows_of_three(side, grid, stride):
    maps = torch.randn(2, 4, side, side)
    windows = maps.double().unfold(2, 3, stride).unfold(3, 3, stride)
    expected = windows.square().mean((-1, -2)).sqrt().float()
    assert expected.shape[-1] == grid
    assert torch.allclose(rms_pool(maps, grid), expected, atol=1e-6)


def test_rms_pool_of_zeros_has_a_finite_gradient():
    maps = torch.zeros(1, 2, 6, 6, requires_grad=True)
    rms_pool(maps, 2).sum().backward()
    assert maps.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_pool_of_16_bit_maps_neither_underflows_nor_overflows(dtype):
    for value in (1e-4, 1000.0):
        maps = torch.full((1, 1, 6, 6), value, dtype=dtype)
        assert rms_pool(maps, 2).numpy() == pytest.approx(float(maps[0, 0, 0, 0]), rel=1e-4)


def test_dead_network_has_finite_gradients():
    encoder = small("o_o_128_5x5")
    with torch.no_grad():
        for value in encoder.parameters():
            value.zero_()
    encoder(torch.zeros(1, 3, 128, 128)).sum().backward()
    assert all(value.grad.isfinite().all() for value in encoder.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", [name for name in RAM if "512" not in name])
def test_mean_of_the_activation_map_plus_bias_is_the_score(name, batch_norm):
    encoder, unit = small(name, batch_norm=batch_norm), nn.Linear(width(small(name)), 1)
    batch = images(encoder.size)
    with torch.no_grad():
        maps = torch.einsum("bkhw,k->bhw", encoder.forward_features(batch), unit.weight[0])
        expected = unit(encoder(batch)).squeeze(1)
    assert torch.allclose(maps.mean((1, 2)) + unit.bias, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["o_o_128_5x5", "o_o_ram_128_5x5"])
def test_explainers_find_the_last_convolution(name):
    encoder = small(name)
    assert last_feature_map(encoder, images(128)) is encoder.trunk


@pytest.mark.parametrize("name", ["o_o_128_5x5", "o_o_128_4x4", "o_o_ram_128_5x5"])
def test_bfloat16_is_close_to_float32(name):
    encoder = small(name, channels=8)
    with torch.no_grad():
        exact = encoder(images(128))
        with torch.autocast("cpu", torch.bfloat16):
            maps = encoder.forward_features(images(128))
            rounded = encoder(images(128))
    assert maps.dtype == torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_channels_last_gives_the_same_features():
    encoder = small("o_o_128_4x4")
    expected = encoder(images(128))
    encoder.to(memory_format=torch.channels_last)
    assert encoder.trunk.conv1.bias.is_contiguous(memory_format=torch.channels_last)
    found = encoder(images(128).contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_classifier_or_a_feature_pyramid_is_refused():
    with pytest.raises(ValueError, match="num_classes must be 0"):
        timm.create_model("o_o_128_5x5", num_classes=5)
    with pytest.raises(UserError, match="no feature pyramid"):
        create_encoder("o_o_128_5x5", None, features_only=True)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=6))
def test_maxout_takes_adjacent_pairs(values):
    pairs = np.array([values, values[::-1]], np.float32)  # pair j is (values[j], values[-1 - j])
    found = maxout(torch.from_numpy(pairs.T.reshape(1, -1)))
    assert found.tolist() == [[max(pair) for pair in pairs.T.tolist()]]


def test_maxout_refuses_an_odd_number():
    with pytest.raises(RuntimeError):
        maxout(torch.zeros(1, 3))


@pytest.mark.parametrize("linear", [False, True])
def test_head_ends_in_a_relu_unless_linear(linear):
    head = MaxoutHead(4, linear_output=linear).eval()
    nn.init.constant_(head.output.bias, -1000.0)
    score = head(torch.ones(3, 4, requires_grad=True))
    score.sum().backward()
    assert score.shape == (3, 1)
    assert (score < -500).all() if linear else (score == 0).all()
    assert head.output.bias.grad.item() == (3 if linear else 0)


def test_head_is_dense_leaky_relu_and_maxout_twice():
    """Against NumPy; in training both inputs of dense layers are dropped by half."""
    torch.manual_seed(0)
    head = MaxoutHead(4, linear_output=True)
    x = torch.randn(5, 4)
    hidden = x.double().numpy()
    for dense in (head.dense1, head.dense2):
        hidden = hidden @ dense.weight.detach().double().numpy().T + 0.05
        hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        hidden = np.maximum(hidden[:, 0::2], hidden[:, 1::2])
    expected = hidden @ head.output.weight.detach().double().numpy().T
    assert head.eval()(x).detach().numpy() == pytest.approx(expected, abs=1e-5)
    dropped = []
    head.dropout.register_forward_hook(lambda _, __, output: dropped.append(output.eq(0).float().mean()))
    head.train()(torch.ones(400, 4))
    assert dropped == pytest.approx([0.5, 0.5], abs=0.05)


def test_head_starts_orthogonal():
    head = MaxoutHead(600)
    for dense in (head.dense1, head.dense2):
        gram = dense.weight.detach().T @ dense.weight.detach()
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)
        assert dense.bias.eq(0.05).all()
    assert head.output.bias.item() == 0
    assert 0.9 < head.output.weight.detach().abs().max() / (6 / 513) ** 0.5 <= 1  # Glorot's bound


def filled(encoder: nn.Module, prefix: str = "encoder.") -> dict[str, torch.Tensor]:
    """State dict of a trained network: random tensors, and a head."""
    generator = torch.Generator().manual_seed(8)
    state = encoder.state_dict()
    found = {
        prefix + key: torch.rand(value.shape, generator=generator).to(value.dtype)
        for key, value in state.items()
    }
    return found | {"head.dense1.weight": torch.ones(2, 2), "head.output.bias": torch.ones(1)}


@pytest.mark.parametrize(("family", "kernel"), [("", "5x5"), ("", "4x4"), ("ram_", "5x5"), ("ram_", "4x4")])
@pytest.mark.parametrize(("size", "larger", "shared"), [(128, 256, 8), (256, 512, 11)])
def test_pretraining_copies_the_weights_of_all_shared_convolutions(family, kernel, size, larger, shared):
    target = small(f"o_o_{family}{larger}_{kernel}", channels=2)
    network = nn.ModuleDict({"encoder": target, "head": nn.Linear(target.num_features, 1)})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = filled(small(f"o_o_{family}{size}_{kernel}", channels=2))
    copied, skipped = copy_trunk(target, tensors)
    assert copied == [f"trunk.conv{number}.weight" for number in range(1, shared + 1)]
    assert set(copied).isdisjoint(skipped)
    assert set(copied) | set(skipped) == target.state_dict().keys()
    for key, value in network.state_dict().items():
        name = key.removeprefix("encoder.")
        assert torch.equal(value, tensors[key] if name in copied else before[key])


def test_tied_biases_and_batch_norm_are_copied():
    options = {"channels": 2, "tied_biases": True, "batch_norm": True}
    target, source = small("o_o_256_4x4", **options), small("o_o_128_4x4", **options)
    tensors = filled(source, prefix="")
    network = nn.ModuleDict({"encoder": target})
    copied, _ = copy_trunk(network, tensors)
    assert set(copied) == source.state_dict().keys()
    assert all(torch.equal(target.state_dict()[key], tensors[key]) for key in copied)
    assert "trunk.norm.running_var" in copied
    assert "trunk.conv8.bias" in copied


def test_untied_biases_are_interpolated_on_request():
    target, source = small("o_o_256_5x5"), small("o_o_128_5x5")
    tensors = filled(source)
    ramp = torch.arange(56.0).expand(1, 4, 56, 56)
    tensors["encoder.trunk.conv1.bias"] = ramp
    copied, skipped = copy_trunk(target, tensors, interpolate_biases=True)
    assert set(copied) == source.state_dict().keys()
    assert "trunk.conv9.bias" in skipped
    row = target.trunk.conv1.bias[0, 2, 7].detach().numpy()
    assert row == pytest.approx(np.clip(np.arange(112) / 2 - 0.25, 0, 55))  # centres of half pixels
    same = small("o_o_128_5x5")
    copy_trunk(same, tensors, interpolate_biases=True)
    assert torch.equal(same.trunk.conv2.bias, tensors["encoder.trunk.conv2.bias"])


def test_biases_of_the_other_kind_are_left():
    tied, untied = small("o_o_128_5x5", tied_biases=True), small("o_o_128_5x5")
    for target, source in ((tied, untied), (untied, tied)):
        copied, _ = copy_trunk(target, filled(source), interpolate_biases=True)
        assert copied == [f"trunk.conv{number}.weight" for number in range(1, 9)]


@pytest.mark.parametrize(("other", "found"), [
    (lambda: filled(small("o_o_128_4x4")), r"is \(4, 3, 4, 4\)"),
    (lambda: filled(small("o_o_128_5x5", channels=2)), r"is \(2, 3, 5, 5\)"),
    (lambda: {"encoder.conv1.weight": torch.ones(1)}, "is missing"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(other, found):
    target = small("o_o_256_5x5")
    with pytest.raises(UserError, match=rf"trunk\.conv1\.weight {found}, expected \(4, 3, 5, 5\)") as error:
        copy_trunk(target, other())
    assert "\n" not in str(error.value)


def test_a_trunk_is_copied_into_o_o_networks_only():
    with pytest.raises(UserError, match="not Linear"):
        copy_trunk(nn.Linear(1, 1), filled(small("o_o_128_5x5")))

"""A fake folder in the released form, named by the released code's layers, read back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clpi.conftest import variable

from drgrade.clpi.weights import read_released, read_variable, released_tensors, variables
from drgrade.errors import UserError
from drgrade.networks.clpi import ARCHITECTURES, Encoder


def released_shapes(growth: int, blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables that the released code creates, layer after layer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}_{part}": (channels,) for part in ("scale", "offset", "mean", "variance")})

    fan_in = 3
    kernels = [(32, 5), (32, 2), (64, 2), (128, 2), (256, 2), (512, 2), (1024, 2), (1024, 1), (1024, 1)]
    for number, (channels, kernel) in enumerate(kernels):
        shapes[f"s1_layer{number}_weights"] = (channels, fan_in, kernel, kernel)
        norm(f"s1_layer{number}.bn", channels)
        fan_in = channels
    shapes["s1_layer9_weights"] = (4, 1024, 1, 1)
    channels = 2 * growth
    shapes["conv1_weights"] = (channels, 12, 7, 7)
    norm("conv1_bn", channels)
    for block, layers in enumerate(blocks, 2):
        for layer in range(1, layers + 1):
            norm(f"conv{block}_{layer}_x1_bn", channels)
            shapes[f"conv{block}_{layer}_x1_weights"] = (4 * growth, channels, 1, 1)
            norm(f"conv{block}_{layer}_x2_bn", 4 * growth)
            shapes[f"conv{block}_{layer}_x2_weights"] = (growth, 4 * growth, 3, 3)
            channels += growth
        norm(f"conv{block}_blk_bn", channels)
        if block < 5:
            shapes[f"conv{block}_blk_weights"] = (channels // 2, channels, 1, 1)
            channels //= 2
    shapes["lesion_conv"] = (1024, channels + 1, 1, 1)
    norm("lesion_bn", 1024)
    return shapes | {"fc_weights": (1024, 5), "fc_offset": (5,)}


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    """Random values for a small trunk."""
    rng = np.random.default_rng(0)
    (tmp_path / "released").mkdir()
    for number, (name, shape) in enumerate(released_shapes(*tiny).items()):
        values = rng.random(shape, np.float32)
        (tmp_path / "released" / name).write_bytes(variable(values, packed=number % 2 == 0))
    return tmp_path / "released"


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_tensor_has_the_variable_of_its_layer(name):
    names, shapes = variables(ARCHITECTURES[name]), released_shapes(*ARCHITECTURES[name])
    assert sorted(names.values()) == sorted(shapes)
    with torch.device("meta"):
        own = {
            f"encoder.{key}": value.shape for key, value in Encoder(ARCHITECTURES[name]).state_dict().items()
        }
    own |= {"head.weight": (5, 1024), "head.bias": (5,)}
    assert {key for key in own if "num_batches" not in key} == names.keys()
    for key, released in names.items():
        assert tuple(own[key]) == (shapes[released][::-1] if key == "head.weight" else shapes[released]), key


def test_a_released_folder_is_read_back(folder, tiny):
    grader = read_released(folder)
    state, rng = grader.network.state_dict(), np.random.default_rng(0)
    by_variable = {released: key for key, released in variables(tiny).items()}
    for name, shape in released_shapes(*tiny).items():
        values = rng.random(shape, np.float32)
        expected = values.T if name == "fc_weights" else values
        np.testing.assert_array_equal(state[by_variable[name]].numpy(), expected, err_msg=name)
    assert (grader.params.input_size, grader.params.align_corners) == (1024, True)
    assert (grader.crop.rule, grader.crop.size) == ("clpi", 1024)
    assert grader.network.encoder.align_corners
    assert (grader.preprocess.mean, grader.preprocess.std) == ((0, 0, 0), (1, 1, 1))


def test_gaps_are_refused_in_one_line(folder, tiny, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_released(tmp_path / "nowhere")
    (folder / "learning_rate_0").write_bytes(variable(np.zeros(1)))
    with pytest.raises(
        UserError, match="1 files are no variables of the network, such as learning_rate_0; move"
    ):
        released_tensors(folder, tiny)
    (folder / "learning_rate_0").unlink()
    (folder / "conv2_1_x1_bn_mean").unlink()
    (folder / "lesion_conv").unlink()
    with pytest.raises(
        UserError, match=r"2 of \d+ variables are missing, such as conv2_1_x1_bn_mean"
    ) as error:
        read_released(folder)
    assert "\n" not in str(error.value)


def test_a_variable_of_another_shape_is_named(folder):
    (folder / "fc_weights").write_bytes(variable(np.zeros((1024, 2))))
    with pytest.raises(
        UserError, match=r"fc_weights: is \(2, 1024\), not \(5, 1024\) as in clpi_densenet121"
    ):
        read_released(folder)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("levels", [0, 2])
def test_a_variable_keeps_its_values(tmp_path, packed, levels):
    values = np.arange(300 * 2, dtype=np.float32).reshape(300, 2, 1)
    (tmp_path / "one").write_bytes(variable(values, packed=packed, levels=levels))
    found = read_variable(tmp_path / "one")
    np.testing.assert_array_equal(found, values)
    found[:] = 0  # a copy, which may be changed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unpack_from requires"),
        (b"\x80\x04\x95 a pickle, which is never run", "requires a buffer"),
        (variable(np.zeros(3))[:-1], r"11 bytes for the shape \(3,\)"),
        (variable(np.zeros(3)) + b"\0", r"13 bytes for the shape \(3,\)"),
        (variable(np.zeros(3), kind=6), "type 6, not float32"),
        (b"\1" + variable(np.zeros(3))[1:], "version is not 0"),
        (variable(np.zeros(3))[:21], "index out of range"),
        (variable(np.zeros(3)).replace(b"\x10\x03", b"\x1a\x03"), "unknown field 3"),
    ],
    ids=["empty", "pickle", "short", "long", "double", "version", "cut", "field"],
)
def test_a_damaged_variable_is_refused(tmp_path, content, reason):
    (tmp_path / "one").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"one: not a variable of PaddlePaddle 1\.x \(.*{reason}.*; unpack it again"
    ):
        read_variable(tmp_path / "one")

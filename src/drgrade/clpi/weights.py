"""Read the weights released with CLPI: a folder with one file for each variable of PaddlePaddle 1.x.

A file (``fluid.io.save_vars``) holds, in little-endian order:

- uint32, 0: version; uint64: number of levels of detail, 0 for weights; of each its length in bytes (uint64)
  and its data;
- uint32, 0: version; int32: length of a description; the description, a protobuf message with the type of the
  values (field 1; 5 is float32) and the dimensions (field 2);
- the values, in C order.

Only numbers are parsed, and no code is run. Variables have the names of the released code.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.errors import UserError
from drgrade.grading.clpi import Clpi, Params
from drgrade.networks.clpi import ARCHITECTURES, LESION_LAYERS, Architecture
from drgrade.params import Crop

FLOAT32 = 5
"""Type of float32 values in a description."""
NORM = {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "variance"}
"""Tensors of batch normalisation, and the endings of their variables."""
CLASSIFIER = "head.weight"
"""Tensor whose variable is transposed: (inputs, outputs)."""
PUBLISHED_SIZE = 1024


def read_released(folder: Path, encoder: str = "clpi_densenet121") -> Clpi:
    """A grader with the released weights: crops of 1024 px by the rule ``clpi``; resizes as released.

    Args:
        folder: holds one file for each variable and nothing else.
        encoder: timm name of the network.

    Raises:
        UserError: a variable is missing, left over, damaged, or of another shape.
    """
    params = Params(encoder=encoder, input_size=PUBLISHED_SIZE, align_corners=True)
    grader = Clpi(params, Crop(rule="clpi", size=PUBLISHED_SIZE))
    grader.network = grader.new_network("random")
    own = grader.network.state_dict()
    found = released_tensors(folder, ARCHITECTURES[encoder])
    names = variables(ARCHITECTURES[encoder])
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            shapes = tuple(tensor.shape), tuple(own[name].shape)
            raise UserError(f"{folder / names[name]}: is {shapes[0]}, not {shapes[1]} as in {encoder}")
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    grader.network.load_state_dict(found | counters)
    return grader


def released_tensors(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    """The tensors of a :class:`.ClpiNetwork` by name, without the counters of batch normalisation.

    Raises:
        UserError: there is no such folder; a variable is missing, left over or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one with the released weights")
    names = variables(architecture)
    there = {path.name for path in folder.iterdir()}
    missing = sorted(set(names.values()) - there)
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} variables are missing, such as {missing[0]}; "
            "unpack the released weights again, or name their network with --arch"
        )
    extra = sorted(there - set(names.values()))
    if extra:
        raise UserError(
            f"{folder}: {len(extra)} files are no variables of the network, such as {extra[0]}; move them "
            "away, or name the network of the weights with --arch"
        )
    found = {name: torch.from_numpy(read_variable(folder / variable)) for name, variable in names.items()}
    found[CLASSIFIER] = found[CLASSIFIER].T.contiguous()
    return found


def variables(architecture: Architecture) -> dict[str, str]:
    """Name of the released variable of each tensor of a :class:`.ClpiNetwork`; without the counters."""
    return dict(_variables(architecture))


def _variables(architecture: Architecture) -> Iterator[tuple[str, str]]:
    for number in range(len(LESION_LAYERS)):
        layer = f"encoder.lesions.layers.{number}"
        yield f"{layer}.conv.weight", f"s1_layer{number}_weights"
        yield from _norm(f"{layer}.norm", f"s1_layer{number}.bn")
    yield "encoder.lesions.head.weight", f"s1_layer{len(LESION_LAYERS)}_weights"
    trunk = "encoder.trunk"
    yield f"{trunk}.conv0.weight", "conv1_weights"
    yield from _norm(f"{trunk}.norm0", "conv1_bn")
    for block, layers in enumerate(architecture.blocks, 1):
        for number in range(1, layers + 1):
            for half in (1, 2):
                own = f"{trunk}.denseblock{block}.denselayer{number}"
                yield f"{own}.conv{half}.weight", f"conv{block + 1}_{number}_x{half}_weights"
                yield from _norm(f"{own}.norm{half}", f"conv{block + 1}_{number}_x{half}_bn")
        if block < len(architecture.blocks):
            yield f"{trunk}.transition{block}.conv.weight", f"conv{block + 1}_blk_weights"
            yield from _norm(f"{trunk}.transition{block}.norm", f"conv{block + 1}_blk_bn")
    yield from _norm(f"{trunk}.norm5", f"conv{len(architecture.blocks) + 1}_blk_bn")
    yield "encoder.mix.conv.weight", "lesion_conv"
    yield from _norm("encoder.mix.norm", "lesion_bn")
    yield CLASSIFIER, "fc_weights"
    yield "head.bias", "fc_offset"


def _norm(tensor: str, variable: str) -> Iterator[tuple[str, str]]:
    for own, theirs in NORM.items():
        yield f"{tensor}.{own}", f"{variable}_{theirs}"


def read_variable(path: Path) -> npt.NDArray[np.float32]:
    """The values of a variable's file, writable.

    Raises:
        UserError: it cannot be read, or is no file of float32 values as described above.
    """
    try:
        return _values(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a variable of PaddlePaddle 1.x ({error}); unpack it again") from None


def _values(data: bytes) -> npt.NDArray[np.float32]:
    version, levels = struct.unpack_from("<IQ", data)
    place = struct.calcsize("<IQ")
    for _ in range(levels):
        place += 8 + struct.unpack_from("<Q", data, place)[0]
    tensor_version, length = struct.unpack_from("<Ii", data, place)
    if version or tensor_version:
        raise ValueError("its version is not 0")
    first = place + 8 + length
    kind, shape = _description(data[place + 8 : first])
    if kind != FLOAT32:
        raise ValueError(f"its values have the type {kind}, not float32")
    if len(data) - first != 4 * math.prod(shape):
        raise ValueError(f"{len(data) - first} bytes for the shape {shape}")
    return np.frombuffer(data, "<f4", offset=first).astype(np.float32).reshape(shape)


def _description(message: bytes) -> tuple[int, tuple[int, ...]]:
    """Type and dimensions from a protobuf message."""
    kind, shape, place = 0, [], 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, place = _varint(message, place)
        if tag == 0x08:  # field 1, a number
            kind = number
        elif tag == 0x10:  # field 2, one number
            shape.append(number)
        elif tag == 0x12:  # field 2, several numbers; this one is their length in bytes
            end = place + number
            while place < end:
                number, place = _varint(message, place)
                shape.append(number)
        else:
            raise ValueError(f"unknown field {tag >> 3} in its description")
    return kind, tuple(shape)


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, seven bits a byte, and the place after it."""
    value, shift = 0, 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place

"""Released weights by a writer of their own, and a small trained model."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drgrade.grading.clpi import Clpi, Params
from drgrade.networks import clpi as networks
from drgrade.params import Crop

TINY = networks.Architecture(4, (1, 2, 1, 1))
SIDE = 64


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def variable(values: np.ndarray, *, packed: bool = False, kind: int = 5, levels: int = 0) -> bytes:
    """A variable of PaddlePaddle 1.x, as ``fluid.io.save_vars`` writes it."""
    dims = [varint(side) for side in values.shape]
    shape = (
        b"\x12" + varint(len(b"".join(dims))) + b"".join(dims)
        if packed
        else b"".join(b"\x10" + d for d in dims)
    )
    message = b"\x08" + varint(kind) + shape
    detail = b"".join(struct.pack("<QQQ", 16, 0, 7) for _ in range(levels))
    head = struct.pack("<IQ", 0, levels) + detail + struct.pack("<Ii", 0, len(message)) + message
    return head + values.astype("<f4").tobytes()


@pytest.fixture
def tiny(monkeypatch) -> networks.Architecture:
    """A small trunk in place of that of DenseNet-121; the lesion network is as large as published."""
    monkeypatch.setitem(networks.ARCHITECTURES, "clpi_densenet121", TINY)
    monkeypatch.setattr(
        "drgrade.encoders.create_encoder", lambda _, __, **options: networks.Encoder(TINY, **options)
    )
    return TINY


@pytest.fixture
def model(tiny, tmp_path: Path) -> Callable[..., Path]:
    """Saves an untrained grader for small crops and returns its folder."""

    def save(**values) -> Path:
        torch.manual_seed(0)
        grader = Clpi(Params(input_size=SIDE, **values), Crop(rule="clpi", size=2 * SIDE))
        grader.network = grader.new_network("random")
        with torch.no_grad():
            grader.network.head.weight.normal_()
        grader.save(tmp_path / "model")
        return tmp_path / "model"

    return save

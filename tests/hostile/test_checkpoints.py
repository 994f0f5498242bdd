"""Weights files: mutated, with code, and such as claim more memory than they have bytes.

``tests/test_checkpoints.py`` has what is read, and code beside the tensors.
"""

import io
import json
import pickle
import random
import struct
import zipfile
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import Field, mutated

from drgrade.checkpoints import read_tensors
from drgrade.errors import UserError

TOKENS = (b"cos\nsystem\n", b"ctorch\nload\n", b"R", b"b", b"t", b"h\0", b"\xff" * 8, b"PK\x01\x02")


def saved(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@cache
def files() -> list[bytes]:
    weights = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}
    return [
        saved(weights),
        saved({"state_dict": weights}, _use_new_zipfile_serialization=False),
        save(weights),
    ]


def mutant(number: int) -> bytes:
    rng = random.Random(number)
    data = rng.choice(files())
    fields = [Field(start, 8, "little") for start in (0, *rng.sample(range(len(data)), 8))]
    return mutated(data, files(), rng, fields, TOKENS)


def look(folder: Path, data: bytes) -> str:
    file = folder / ("w.safetensors" if data[8:9] == b"{" else "w.pth")
    file.write_bytes(data)
    try:
        read_tensors(file)
    except UserError as error:
        one_line(str(error), 800, memory=True)  # PyTorch tries to allocate what a damaged file claims
        return "refused"
    return "read"


def test_mutated_checkpoints_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = survive(mutant, partial(look, tmp_path), 500, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > 25, outcomes


def safetensors(shape: list[int], end: int, length: int | None = None, name: str = "a") -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(16)


def compressed() -> bytes:
    file = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(1 << 20)})))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in whole.namelist():
            packed.writestr(member, whole.read(member))
    return file.getvalue()


class Code:
    def __reduce__(self) -> tuple:
        return eval, ("open('ran', 'w')",)


HOSTILE = {
    "header.safetensors": (safetensors([4], 16, 10**12), "not a weights file (Error while"),
    "values.safetensors": (safetensors([10**12], 4 * 10**12), "not a weights file (Error while"),
    "overflow.safetensors": (safetensors([2**62, 2**62], 16), "not a weights file (Error while"),
    "name.safetensors": (safetensors([4], 16, name="a\nb"), "holds no tensors by name"),
    "compressed.pth": (compressed(), "compressed, to be unpacked to 4"),
    "expanded.pth": (saved({"a": torch.zeros(1).expand(10**6, 10**6)}), "a has fewer values than its"),
    "meta.pth": (saved({"a": torch.empty(10**9, device="meta")}), "a has fewer values than its"),
    "number.pth": (saved({1: torch.zeros(2)}), "holds no tensors by name"),
    "module.pth": (saved(torch.nn.Linear(2, 2)), "holds more than tensors"),
    "code.pth": (saved({"a": Code()}), "holds more than tensors"),
    "code_of_old.pth": (saved(Code(), _use_new_zipfile_serialization=False), "holds more than tensors"),
    "pickle.pth": (pickle.dumps(Code()), "holds more than tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_weights_files_that_are_made_to_harm_are_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = HOSTILE[name]
    Path(name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tensors(Path(name))
    one_line(str(error.value))
    assert str(error.value).removeprefix(f"{name}: ").startswith(reason)
    assert [path.name for path in Path().iterdir()] == [name]

"""Pickles with code, mutated ones, and ones that are made to fill the memory or to overflow the stack."""

import pickle
import random
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.hostile.child import one_line, survive
from tests.hostile.mutations import mutated

from drgrade.errors import UserError
from drgrade.lesions.patches import read_patches, read_published

BOXES = {"train": {f"{n}_left.jpeg": [(n, 2.5, 30, 40), (1, 2, 3, n)] for n in range(9)}, "val": {"x": []}}
NUMPY = {"train": {"a": [tuple(np.float64(n) for n in range(4)), tuple(np.int32([1, 2, 3, 4]))]}}
RAW = {"train": {"a": [(500, 600, 1.0, 2.0, 3.0, 4.0, 0.5, 2)]}}
FILES = [pickle.dumps(content, protocol) for content in (BOXES, NUMPY, RAW) for protocol in (0, 2, 4)]
TOKENS = (b".", b"(", b"t", b"\x85", b"R", b"b", b"s", b"u", b"d", b"h\0", b"0", b"2", b"N", b"}", b"]",
          b"\x94", b"\x8a\xff", b"\x8b\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8,
          b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"cos\nsystem\n", b"cnumpy\ndtype\n",
          b"c_codecs\nencode\n", b"P1\n", b"Q", b"\x82\x01", b"\x81", b"\x92", b"\x97",
          b"\x96" + b"\xff" * 8, b"I1" + b"0" * 5000)  # fmt: skip


def mutant(number: int) -> bytes:
    rng = random.Random(number)
    return mutated(rng.choice(FILES), FILES, rng, tokens=TOKENS)


def look(folder: Path, data: bytes) -> str:
    file = folder / "patches.pkl"
    file.write_bytes(data)
    outcome = "refused"
    for read in (read_patches, partial(read_published, size=256, legacy_swap=True)):
        try:
            read(file)
            outcome = "read"
        except UserError as error:
            one_line(str(error).removeprefix(f"{file}: not "), 300)
    return outcome


def test_mutated_pickles_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = survive(mutant, partial(look, tmp_path), 1500, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > 50, outcomes


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def shared(levels: int, make: bytes) -> bytes:
    """Pairs of pairs, and so on, that are the same object: 2 to the power of ``levels`` numbers."""
    return b"(" * levels + b"K\1q\0" + b"".join(b"h%c%sq%c" % (n, make, n + 1) for n in range(levels))


def thrice(count: int) -> bytes:
    """``count`` splits of the same ``count`` images of the same ``count`` boxes."""
    boxes = b"](" + b"(K\1K\2K\3K\4tq\0" + b"h\0" * (count - 1) + b"eq\1"
    images = b"}(" + text("0") + boxes + b"".join(text(str(n)) + b"h\1" for n in range(1, count)) + b"uq\2"
    return b"}(" + text("0") + images + b"".join(text(str(n)) + b"h\2" for n in range(1, count)) + b"u."


SCALAR = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n("
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I9999999999\nt"
BOMBS = {
    "the same boxes": thrice(1000),
    "lists of lists": b"}" + text("train") + b"}" + text("a") + shared(40, b"l") + b"ss.",
    "a key of tuples of tuples": b"}" + shared(60, b"t") + b"K\1s.",
    "a key of 300,000 tuples": b"}" + b")" + b"\x85" * 300_000 + b"K\1s.",
    "300,000 lists": b"}" + text("train") + b"]" * 300_000 + b"a" * 299_999 + b"s.",
    "a number of two billion digits": b"\x8b\xff\xff\xff\x7f1.",
    "text of an exabyte": b"\x8d" + (1 << 60).to_bytes(8, "little") + b"x.",
    "a frame of an exabyte": b"\x80\4\x95" + (1 << 60).to_bytes(8, "little") + b"N.",
    "the reference number two billion": b"Nr\xff\xff\xff\x7f.",
    "values of two gigabytes": SCALAR + text("V2147483647") + b"tRtR.",
    "an array without data": ARRAY + text("b") + b"tR.",
}  # fmt: skip


def bomb(number: int) -> bytes:
    return list(BOMBS.values())[number]


def test_pickles_that_fill_the_memory_or_the_stack_are_refused(tmp_path: Path) -> None:
    assert survive(bomb, partial(look, tmp_path), len(BOMBS), tmp_path) == {"refused": len(BOMBS)}


CODE = {
    "os.system": b"cos\nsystem\n(" + text("touch ran") + b"tR.",
    "posix.system": b"cposix\nsystem\n(" + text("touch ran") + b"tR.",
    "builtins.eval": b"cbuiltins\neval\n(" + text("open('ran', 'w')") + b"tR.",
    "by the stack": text("builtins") + text("exec") + b"\x93(" + text("open('ran', 'w')") + b"tR.",
    "of a part": b"\x80\4" + text("numpy") + text("f2py.os.system") + b"\x93(" + text("touch ran") + b"tR.",
    "an instance": b"(" + text("touch ran") + b"ios\nsystem\n.",
    "an object": b"(cos\nsystem\n" + text("touch ran") + b"o.",
    "a new object": b"cos\nsystem\n(" + text("touch ran") + b"t\x81.",
    "an extension": b"\x82\1.",
    "an object by its number": b"Ptouch ran\n.",
    "state of a function": b"c_codecs\nencode\n}" + text("__code__") + text("x") + b"sb.",
    "another codec": b"c_codecs\nencode\n(" + text("x") + text("zip") + b"tR.",
}  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_code_in_a_pickle_is_refused_and_never_run(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("patches.pkl").write_bytes(CODE[name])
    with pytest.raises(UserError, match=r"^patches\.pkl: not a pickle of plain numbers \(") as error:
        read_patches(Path("patches.pkl"))
    one_line(str(error.value))
    assert sorted(path.name for path in Path().iterdir()) == ["patches.pkl"]

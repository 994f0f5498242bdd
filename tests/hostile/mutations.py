"""Mutate valid files: flipped bits, cuts, spliced pieces, and absurd numbers in the fields of headers."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 24, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 8_000_000,
           2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)  # fmt: skip
"""Values at which programs tend to fail."""


class Field(NamedTuple):
    """A number in a header: where it starts, its bytes, and their order."""

    start: int
    size: int
    order: str


def mutated(
    data: bytes,
    others: Sequence[bytes],
    rng: random.Random,
    fields: Sequence[Field] = (),
    tokens: Sequence[bytes] = (),
) -> bytes:
    """Return a file with one to four random mutations.

    Args:
        data: a valid file.
        others: files to take spliced pieces from.
        rng: source of all random choices.
        fields: the numbers in its header, see FIELDS.
        tokens: what means something in its format, to be inserted anywhere.
    """
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        kind = rng.random()
        if fields and kind < 0.4:
            _inflate(mutant, rng.choice(fields), rng)
        elif tokens and kind < 0.5:
            place = rng.randrange(len(mutant) + 1)
            mutant[place:place] = rng.choice(tokens)
        elif kind < 0.7:
            _flip(mutant, rng)
        elif kind < 0.85:
            _splice(mutant, rng.choice(others), rng)
        elif kind < 0.95:
            _remove(mutant, rng)
        else:
            del mutant[rng.randrange(len(mutant) + 1) :]
    return bytes(mutant)


def _inflate(mutant: bytearray, field: Field, rng: random.Random) -> None:
    value = rng.choice(NUMBERS) % (1 << 8 * field.size)
    mutant[field.start : field.start + field.size] = value.to_bytes(field.size, field.order)


def _flip(mutant: bytearray, rng: random.Random) -> None:
    header = min(len(mutant), 600) if rng.random() < 0.5 else len(mutant)
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        if header:
            mutant[rng.randrange(header)] ^= 1 << rng.randrange(8)


def _splice(mutant: bytearray, other: bytes, rng: random.Random) -> None:
    start, length = rng.randrange(len(other)), rng.randrange(1, 300)
    place = rng.randrange(len(mutant) + 1)
    replaced = length if rng.random() < 0.5 else 0
    mutant[place : place + replaced] = other[start : start + length]


def _remove(mutant: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(mutant) + 1)
    del mutant[place : place + rng.randrange(1, 200)]


def _jpeg(data: bytes) -> Iterator[Field]:
    """Lengths of segments, all numbers of the frame header and of the scan header."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] not in (0xD9, 0x00):
        yield Field(at + 2, 2, "big")
        if data[at + 1] in (0xC0, 0xC1, 0xC2, 0xDA, 0xDB, 0xC4):
            yield from (Field(at + 4 + step, 1, "big") for step in range(12))
        if data[at + 1] in (0xC0, 0xC1, 0xC2):
            yield from (Field(at + 5, 2, "big"), Field(at + 7, 2, "big"))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _png(data: bytes) -> Iterator[Field]:
    """Lengths of chunks, and the whole header."""
    yield from (Field(16, 4, "big"), Field(20, 4, "big"), *(Field(24 + step, 1, "big") for step in range(5)))
    at = 8
    while at + 8 <= len(data):
        yield Field(at, 4, "big")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _tiff(data: bytes) -> Iterator[Field]:
    """Of the first directory: its number of entries, their types, counts and values, and the next one."""
    order = "little" if data[:2] == b"II" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    word, entry, head = (8, 20, 8) if big else (4, 12, 2)
    start = 8 if big else 4
    yield Field(start, word, order)
    at = int.from_bytes(data[start : start + word], order)
    yield Field(at, head, order)
    entries = int.from_bytes(data[at : at + head], order)
    for place in range(at + head, at + head + entries * entry, entry):
        yield from (Field(place, 2, order), Field(place + 2, 2, order), Field(place + 4, word, order))
        yield from (Field(place + 4 + word, word, order), Field(place + 4 + word, 2, order))
    yield Field(at + head + entries * entry, word, order)


def _dicom(data: bytes) -> Iterator[Field]:
    """Lengths and short values of the elements, explicit VR, little endian."""
    at = 132
    while at + 8 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        start, size = (at + 8, 4) if long else (at + 6, 2)
        length = int.from_bytes(data[start : start + size], "little")
        yield Field(start, size, "little")
        if length <= 8:
            yield Field(start + size, max(length, 1), "little")
        at = start + size + (length if length < len(data) else len(data))


FIELDS: dict[str, Callable[[bytes], Iterator[Field]]] = {
    "jpeg": _jpeg, "png": _png, "tiff": _tiff, "dicom": _dicom,
}  # fmt: skip
"""Finds the numbers in the header of a valid file, by format."""


def with_checksums(png: bytes) -> bytes:
    """Return a mutated PNG with the checksums of its chunks made right, so that decoders look into them."""
    mutant, at = bytearray(png), 8
    while at + 12 <= len(mutant):
        length = int.from_bytes(mutant[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(mutant):
            break
        mutant[end : end + 4] = struct.pack(">I", zlib.crc32(mutant[at + 4 : end]))
        at = end + 4
    return bytes(mutant)

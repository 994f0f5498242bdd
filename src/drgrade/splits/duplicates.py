"""Find duplicate photographs: all pairs of perceptual hashes within a few bits, by an exact search."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

MOST_BITS = 15
"""Largest difference of duplicates: with more, bands are so short that unrelated hashes agree in one."""
DIGITS = 64

Ints = npt.NDArray[np.int64]


def near_duplicates(hashes: Sequence[str | None], bits: int) -> list[tuple[int, int, int]]:
    """Return all pairs of hashes that differ in at most ``bits`` bits, by position of first occurrence.

    Repeated hashes are paired with their first occurrence only, so a thousand equal hashes give 999 pairs.
    All other pairs within ``bits`` follow from those listed.

    Args:
        hashes: 64 hexadecimal digits each; missing hashes have no pairs.
        bits: maximum number of differing bits, 0-15.

    Returns:
        (i, j, number of differing bits) with i < j, sorted.

    Raises:
        ValueError: ``bits`` is out of range, or a hash is not valid.

    >>> near_duplicates(["0" * 64, None, "0" * 63 + "1", "f" * 64, "0" * 64], 2)
    [(0, 2, 1), (0, 4, 0)]
    """
    codes, distinct = pd.factorize(pd.Index(list(hashes), dtype="string"))
    places = np.flatnonzero(codes >= 0)
    first = places[np.unique(codes[places], return_index=True)[1]]
    again = np.setdiff1d(places, first)
    pairs = [(int(first[codes[row]]), int(row), 0) for row in again]
    for a, b, apart in near_pairs(distinct.tolist(), bits):
        ends = np.sort(np.stack([first[a], first[b]]), axis=0)
        pairs += zip(*ends.tolist(), apart.tolist(), strict=True)
    return sorted(pairs)


def near_pairs(distinct: Sequence[str], bits: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield pairs of different hashes within ``bits`` bits, in blocks: positions a and b, differing bits.

    A hash is divided into ``bits + 1`` bands; two within ``bits`` bits agree in one of them (pigeonhole). For
    each band, hashes are sorted by it and compared with their next, second next, ... neighbour as long as the
    band is equal. Memory stays linear in the number of hashes, however many of them share a band.

    Raises:
        ValueError: ``bits`` is not 0-15, or a hash is not 64 hexadecimal digits.
    """
    if not 0 <= bits <= MOST_BITS:
        raise ValueError(f"bits: {bits} is not 0 to {MOST_BITS}")
    words = _words(distinct)
    bands = _bands(words, bits + 1)
    for band in range(bits + 1):
        order = np.argsort(bands[:, band], kind="stable")
        value, step = bands[order, band], 0
        start = np.arange(len(order))
        while len(start):
            step += 1
            start = start[start + step < len(order)]
            start = start[value[start] == value[start + step]]
            a, b = order[start], order[start + step]
            apart = np.bitwise_count(words[a, 0] ^ words[b, 0]).astype(np.int64)
            for word in range(1, words.shape[1]):  # most are too far apart after the first 64 bits
                close = apart <= bits
                a, b, apart = a[close], b[close], apart[close]
                apart += np.bitwise_count(words[a, word] ^ words[b, word])
            fresh = apart <= bits
            fresh &= ~(bands[a, :band] == bands[b, :band]).any(axis=1)  # others: found in an earlier band
            if fresh.any():
                yield a[fresh], b[fresh], apart[fresh]


def _bands(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """Divide hashes (n, 4) into bands of equal width, (n, count); of wide bands only the first 64 bits."""
    every = np.unpackbits(words.view(np.uint8), axis=1)
    bands = np.empty((len(words), count), np.uint64)
    for band, digits in enumerate(np.array_split(every, count, axis=1)):
        packed = np.packbits(digits[:, :64], axis=1)
        bands[:, band] = np.pad(packed, ((0, 0), (0, 8 - packed.shape[1]))).view(np.uint64)[:, 0]
    return bands


def _words(distinct: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Convert hashes to an array (n, 4) of 64-bit words."""
    try:
        raw = b"".join(map(bytes.fromhex, distinct))
    except ValueError:
        raw = b""
    if len(raw) * 2 != len(distinct) * DIGITS or any(len(one) != DIGITS for one in distinct):
        raise ValueError(f"a perceptual hash is {DIGITS} hexadecimal digits")
    return np.frombuffer(raw, np.uint64).reshape(-1, 4)

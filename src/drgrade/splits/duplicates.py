"""Which photographs are the same one: all pairs of perceptual hashes that differ in a few bits, exactly."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

BANDS = 16
"""A hash is 16 bands of 16 bits: two that differ in at most 15 bits agree in one band (pigeonhole)."""
MOST_BITS = BANDS - 1
DIGITS = 64

Ints = npt.NDArray[np.int64]


def near_duplicates(hashes: Sequence[str | None], bits: int) -> list[tuple[int, int, int]]:
    """All pairs of hashes that differ in at most ``bits`` bits, given by the first photograph of each hash.

    Photographs of an equal hash are paired with the first of them alone, so that a thousand equal ones are
    999 pairs. Any other pair within ``bits`` follows: its hashes are equal to, or are, a pair listed.

    Args:
        hashes: 64 hexadecimal digits each; missing ones are near nothing.
        bits: 0-15.

    Returns:
        (i, j, bits that differ) with i < j, sorted.

    Raises:
        ValueError: ``bits`` out of range, or a hash that is none.

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
    """Pairs of different hashes within ``bits`` bits, in blocks: positions a, positions b, bits that differ.

    Hashes are sorted by one band after the other and compared with their next, second next, ... neighbour as
    long as the band is equal: no more than two numbers a hash are held, however many share a band.

    Raises:
        ValueError: ``bits`` is not 0-15, or a hash is not 64 hexadecimal digits.
    """
    if not 0 <= bits <= MOST_BITS:
        raise ValueError(f"bits: {bits} is not 0 to {MOST_BITS}")
    words = _words(distinct)
    bands = words.view(np.uint16)
    for band in range(BANDS):
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
            fresh &= ~(bands[a, :band] == bands[b, :band]).any(axis=1)  # an earlier band gave the others
            if fresh.any():
                yield a[fresh], b[fresh], apart[fresh]


def _words(distinct: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Hashes as (n, 4) words of 64 bits."""
    try:
        raw = b"".join(map(bytes.fromhex, distinct))
    except ValueError:
        raw = b""
    if len(raw) * 2 != len(distinct) * DIGITS or any(len(one) != DIGITS for one in distinct):
        raise ValueError(f"a perceptual hash is {DIGITS} hexadecimal digits")
    return np.frombuffer(raw, np.uint64).reshape(-1, 4)

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.splits.duplicates import near_duplicates, near_pairs

# few distinct bits, so that hashes are equal or near often
sparse = st.lists(st.integers(0, 255), max_size=12).map(lambda bits: sum(1 << bit for bit in set(bits)))
near_values = st.lists(st.one_of(st.none(), sparse, st.integers(0, 3)), max_size=30)


def digits(value: int | None) -> str | None:
    return None if value is None else f"{value:064x}"


def implied(pairs: list[tuple[int, int, int]], hashes: list[str | None]) -> set[tuple[int, int, int]]:
    """All pairs that follow from those listed: photographs of an equal hash share their first's pairs."""
    members: dict[int, list[int]] = {row: [hashes.index(one)] for row, one in enumerate(hashes) if one}
    same: dict[int, list[int]] = {}
    for row, (first,) in members.items():
        same.setdefault(first, []).append(row)
    found = {(a, b, 0) for rows in same.values() for a in rows for b in rows if a < b}
    for a, b, apart in pairs:
        found |= {(min(x, y), max(x, y), apart) for x in same[a] for y in same.get(b, []) if apart}
    return found


@given(near_values, st.integers(0, 15))
def test_all_pairs_within_the_bits_and_no_other(values, bits) -> None:
    hashes = [digits(value) for value in values]
    expected = {
        (i, j, (a ^ b).bit_count())
        for j, b in enumerate(values)
        for i, a in enumerate(values[:j])
        if a is not None and b is not None and (a ^ b).bit_count() <= bits
    }
    pairs = near_duplicates(hashes, bits)
    assert implied(pairs, hashes) == expected
    assert pairs == sorted(set(pairs))
    assert set(pairs) <= expected


@pytest.mark.parametrize("bits", [0, 1, 10, 15])
def test_planted_copies_are_found_wherever_the_bits_are(bits) -> None:
    rng = np.random.default_rng(bits)
    originals = [int.from_bytes(rng.bytes(32), "big") for _ in range(300)]
    copies = []
    for value in originals:
        flips = rng.choice(256, bits + 1, replace=False).tolist()
        near = value ^ sum(1 << bit for bit in flips[:bits])
        copies += [near, value ^ sum(1 << bit for bit in flips)]  # one within, one just beyond
    found = near_duplicates([digits(value) for value in originals + copies], bits)
    assert [(a, b, d) for a, b, d in found if a < 300] == [(n, 300 + 2 * n, bits) for n in range(300)]


def test_equal_hashes_are_paired_with_their_first_alone() -> None:
    tracemalloc.start()
    pairs = near_duplicates(["a" * 64] * 5000, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs == [(0, n, 0) for n in range(1, 5000)]
    assert peak < 20e6


def test_a_band_shared_by_thousands_is_searched_in_little_memory() -> None:
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(30).hex() + "0000" for _ in range(4000)]
    hashes[3000] = hashes[5][:-5] + "f0000"
    tracemalloc.start()
    pairs = near_duplicates(hashes, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    apart = (int(hashes[5], 16) ^ int(hashes[3000], 16)).bit_count()
    assert apart <= 4
    assert pairs == [(5, 3000, apart)]
    assert peak < 20e6  # all 8 million pairs would need more


def test_a_pair_in_many_equal_bands_comes_once() -> None:
    blocks = list(near_pairs(["0" * 64, "0" * 63 + "1"], 15))
    assert [(a.tolist(), b.tolist(), d.tolist()) for a, b, d in blocks] == [([0], [1], [1])]


def test_nothing_to_compare() -> None:
    assert near_duplicates([], 10) == []
    assert near_duplicates([None, "0" * 64, None], 10) == []


@pytest.mark.parametrize("bits", [-1, 16])
def test_more_bits_than_bands_cannot_be_promised(bits) -> None:
    with pytest.raises(ValueError, match="not 0 to 15"):
        near_duplicates(["0" * 64], bits)


@pytest.mark.parametrize("broken", ["0" * 63, "0" * 66, "g" * 64, "0" * 32 + " " * 2 + "0" * 32])
def test_a_broken_hash_is_refused(broken) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        near_duplicates(["0" * 64, broken], 10)

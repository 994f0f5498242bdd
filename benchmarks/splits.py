"""Near duplicates, groups and splits of more photographs than EyePACS has, against comparing all pairs.

    uv run python benchmarks/splits.py [--photographs 100000] [--compared 2000]

Synthetic rows: both eyes of each patient, grades as in EyePACS, random perceptual hashes of which one in a
hundred is another photograph's with up to 10 bits changed, and a twentieth share their last 16 bits. The
baseline compares the first hashes with all others by exclusive or, and is extrapolated to all pairs; on those
it must find the same. Ours is what the index stage does, and, apart, the search for overlaps between two
datasets of half the size. Memory is the largest of the process up to there, imports and table included.
The last line is one JSON object.
"""

import argparse
import json
import logging
import resource
import time

import numpy as np
import pandas as pd

from drgrade.params import Index, Roles
from drgrade.splits.assign import assign_splits
from drgrade.splits.duplicates import near_duplicates
from drgrade.splits.overlaps import find_leaks

BITS, SECONDS, MEGABYTES = 10, 10.0, 500.0
"""Default of index.duplicate_bits; targets of splitting, a part of index, splits and crop planning."""


def make_hashes(count: int, rng: np.random.Generator) -> list[str]:
    """Perceptual hashes with near copies and with a crowded band."""
    words = rng.integers(0, 1 << 64, (count, 4), dtype=np.uint64)
    words[rng.choice(count, count // 20, replace=False), 3] &= np.uint64((1 << 48) - 1)
    chosen = rng.choice(count, 2 * (count // 100), replace=False)
    originals, copies = chosen[::2], chosen[1::2]
    words[copies] = words[originals]
    for row in copies:
        for bit in rng.choice(256, rng.integers(0, BITS + 1), replace=False).tolist():
            words[row, bit // 64] ^= np.uint64(1 << (bit % 64))
    return [row.tobytes().hex() for row in words]


def make_table(count: int) -> pd.DataFrame:
    """The columns of an index that splitting looks at."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"image_id": [f"{row // 2}_{'left' if row % 2 else 'right'}" for row in range(count)]}
    )
    table["patient_id"] = [f"{row // 2}" for row in range(count)]
    table["sha256"] = [rng.bytes(32).hex() for _ in range(count)]
    table["phash"] = make_hashes(count, rng)
    # grade shares of EyePACS: 73, 7, 15, 2 and 2 per cent
    table["grade"] = rng.choice(5, size=count, p=[0.735, 0.07, 0.151, 0.023, 0.021])
    table = table.assign(subset="grading", status="ok", official_split=pd.NA)
    return table.astype({"image_id": "string", "patient_id": "string", "grade": "Int8"})


def compare_all(hashes: list[str], compared: int) -> tuple[set[tuple[int, int]], float]:
    """Near pairs of the first hashes with all others, and the seconds that all pairs would take."""
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(-1, 4)
    start, pairs = time.perf_counter(), set()
    for row in range(compared):
        apart = np.bitwise_count(words[row] ^ words[row + 1 :]).sum(axis=1)
        pairs |= {(row, row + 1 + int(other)) for other in np.flatnonzero(apart <= BITS)}
    seconds = time.perf_counter() - start
    done = sum(len(hashes) - 1 - row for row in range(compared))
    return pairs, seconds * (len(hashes) * (len(hashes) - 1) / 2) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=100_000)
    parser.add_argument("--compared", type=int, default=2000)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the copies' list
    table, params = make_table(arguments.photographs), Index(duplicate_bits=BITS)
    hashes = table["phash"].tolist()
    half = {name: table.iloc[place::2] for place, name in enumerate(("demo", "other"))}
    halves = {name: assign_splits(part, params) for name, part in half.items()}

    def seconds(work: str) -> float:
        start = time.perf_counter()
        jobs[work]()
        return time.perf_counter() - start

    jobs = {
        "near duplicates": lambda: near_duplicates(hashes, BITS),
        "groups and splits (duplicates included)": lambda: assign_splits(table, params),
        "overlaps of two datasets": lambda: find_leaks(halves, Roles(external=["other"]), BITS),
    }
    took = {work: seconds(work) for work in jobs}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for work, value in took.items():
        print(f"{work}: {value:.2f} s")
    expected, naive = compare_all(hashes, arguments.compared)
    found = {(a, b) for a, b, _ in near_duplicates(hashes, BITS) if a < arguments.compared}
    print(f"all pairs: {naive:.0f} s, from {arguments.compared} rows")
    print(f"near pairs of those: {len(expected)}, of which ours finds {len(found & expected)}")
    value = took["groups and splits (duplicates included)"]
    result = {
        "name": "splits_100k",
        "value": round(value, 2),
        "unit": f"s for duplicates, groups and splits of {len(table)} photographs",
        "peak_mb": round(peak),
        "duplicates_s": round(took["near duplicates"], 2),
        "overlaps_s": round(took["overlaps of two datasets"], 2),
        "baseline": round(naive),
        "ratio": round(naive / took["near duplicates"]),
        "target": SECONDS,
        "holds": value <= SECONDS and peak <= MEGABYTES and found == expected,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

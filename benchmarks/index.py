"""Listing 100,000 photographs: index, splits and crop planning, without looking into any of them.

    [DRGRADE_IDRID_ROOT=/path/to/IDRiD] uv run python benchmarks/index.py [--photographs 100000]

A folder of that many files (hard links to a few) with a label file goes through the reader, the manifest, the
joining, the split by patient and near-duplicate, the saved split, and the plan of the crop stage. What a look
at each photograph tells is made up; how long real looks take (decode at an eighth, quality, perceptual hash)
is measured on photographs of 4752x3168 (IDRiD's, resized, or painted) and stands beside as the baseline, on
one core. Memory is the largest of the whole process. The last line is one JSON object.
"""

import argparse
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from crop import photographs  # benchmarks/crop.py, which lies beside this file

from drgrade.data.folder import Folder
from drgrade.data.index import assemble, digests
from drgrade.data.listing import HEADER, read_manifest
from drgrade.images.stage import plan
from drgrade.images.survey import Survey, survey
from drgrade.params import Crop, Index
from drgrade.schema import INDEX, write_table
from drgrade.splits.files import write_split

SECONDS, MEGABYTES = 60.0, 1000.0
LINKS = 30_000
"""Hard links to one file, below what file systems allow."""


def lay_out(root: Path, count: int) -> Path:
    """Photographs, labels and manifest of ``count`` eyes, two a patient; returns the manifest."""
    images = root / "images"
    images.mkdir(parents=True)
    names = [f"{row // 2}_{('left', 'right')[row % 2]}" for row in range(count)]
    for row, name in enumerate(names):
        path = images / f"{name}.jpg"
        if row % LINKS == 0:
            source = path
            source.write_bytes(b"photograph")
        else:
            os.link(source, path)
    grades = np.random.default_rng(0).choice(5, size=count, p=[0.735, 0.07, 0.151, 0.023, 0.021])
    lines = [f"{name},{grade}" for name, grade in zip(names, grades, strict=True)]
    (root / "labels.csv").write_text("\n".join(["image,grade", *lines, ""]))
    manifest = root / "manifest.tsv"
    lines = [f"images/{name}.jpg\t10\t{row:064x}" for row, name in enumerate(names)]
    manifest.write_text("\n".join([HEADER, *lines, ""]))
    return manifest


@contextmanager
def timed(name: str, took: dict[str, float]) -> Iterator[None]:
    """Seconds of the block under ``name``."""
    start = time.perf_counter()
    yield
    took[name] = time.perf_counter() - start


def listing(root: Path, manifest: Path, count: int) -> dict[str, float]:
    """Seconds of each step."""
    took: dict[str, float] = {}
    rng = np.random.default_rng(1)
    looks = [Survey(4752, 3168, 0.9, 1.0, 1.0, 1.0, 0.9, rng.bytes(32).hex()) for _ in range(count)]
    with timed("manifest", took):
        listed = read_manifest(manifest)
    with timed("reader", took):
        kinds = {"grade": "Int8", "path": "string", "official_split": "string", "quality_label": "string"}
        table = Folder().read(root).astype(kinds).sort_values("image_id", ignore_index=True)
    with timed("files as listed", took):
        table["sha256"] = digests(root, table["path"], listed)
    with timed("join and split", took):
        table = assemble(table, looks, Index())
    with timed("write", took):
        write_table(table, root / "index.parquet", INDEX)
        write_split(table, root / "split.csv", Index(), root / "index.parquet")
    with timed("crop planning", took):
        planned = plan(table, root, Crop(size=512))
    print(f"{count} photographs: {planned.readable.sum()} crops in {len(planned.shards)} shards")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=100_000)
    count = parser.parse_args().photographs
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        manifest = lay_out(Path(folder), count)
        took = listing(Path(folder), manifest, count)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, seconds in took.items():
        print(f"{name:18s}{seconds:8.2f} s")
    total = sum(took.values())
    with tempfile.TemporaryDirectory() as folder:
        paths, what = photographs(4, 92, Path(folder))
        looks = []
        for path in paths * 5:
            start = time.perf_counter()
            survey(path)
            looks.append(time.perf_counter() - start)
    look = statistics.median(looks[len(paths) :])
    print(f"a look: {1000 * look:.1f} ms ({what}); {count} of them on one core: {count * look:.0f} s")
    result = {
        "name": "index_100000",
        "value": round(total, 2),
        "unit": "s",
        "baseline": round(count * look, 1),
        "ratio": round(count * look / total, 1),
        "target": SECONDS,
        "holds": total < SECONDS and megabytes < MEGABYTES,
        "peak_mb": round(megabytes),
        "look_ms": round(1000 * look, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Random batches of 64 crops of 512 px: images/s from each kind of store, against one file a photograph.

    uv run python benchmarks/loader.py [--photographs 48] [--batches 12]

Crops are of IDRiD's photographs (DRGRADE_IDRID_ROOT) or, without them, of synthetic eyes, each also turned
and mirrored, which makes 8. A batch ends as one uint8 array (64, 512, 512, 3); the readers take turns with
the same rows. One core: the process is bound to it. All cores: files are read by as many threads, a store
sees to its own. Warm: all is in the page cache. Cold, on all cores: the kernel is asked to forget the files
before each batch (posix_fadvise), and what a batch then had read from the disk is printed, as far as
/proc/self/io tells. The target holds the raw store to the faster of two readers of JPEG files, warm, on one
core and on all. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from drgrade.data.registry import DATASETS
from drgrade.images.crop import crop_photograph
from drgrade.images.shards import Format, encode, write_store
from drgrade.images.store import CropStore
from drgrade.params import Crop, Demo, Download

SIZE, BATCH, QUALITY = 512, 64, 95
FASTER = 5.0
"""Target: raw store against reading JPEG files, in images/s."""
FORMATS: tuple[Format, ...] = ("raw", "png", "jpeg")

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def crops(count: int, folder: Path) -> tuple[Pixels, str]:
    """``count`` photographs cropped, each in its eight turns (8 count, 512, 512, 3); and what they are."""
    root = os.environ.get("DRGRADE_IDRID_ROOT", "")
    paths = sorted(Path(root).glob("*/1. Original Images/*/*.jpg")) if root else []
    kind = "IDRiD" if paths else "painted"
    if not paths:
        DATASETS.get("demo")().download(folder, Download(demo=Demo(patients=-(-count // 2), width=800)))
        paths = sorted(folder.rglob("*.jpeg"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    cut = [crop_photograph(path, Crop(size=SIZE))[0] for path in paths]
    turned = [np.rot90(crop[:, ::side], turns) for crop in cut for side in (1, -1) for turns in range(4)]
    return np.ascontiguousarray(turned), f"{len(cut)} {kind} photographs, 8 turns of each"


def by_file(read: Callable[[Path], Pixels], paths: list[Path]) -> Callable[[Rows], Pixels]:
    """A reader of one file a photograph, in as many threads as there are cores."""

    def batch(rows: Rows) -> Pixels:
        out = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)

        def place(k: int) -> None:
            out[k] = read(paths[rows[k]])

        cores = len(os.sched_getaffinity(0))
        if cores == 1:
            for k in range(len(rows)):
                place(k)
            return out
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(place, range(len(rows))))
        return out

    return batch


def write(pictures: Pixels, folder: Path) -> dict[str, list[Path]]:
    """Every store and every kind of file; the files of each."""
    written = {}
    for format in FORMATS:
        write_store(pictures, folder / f"{format}.json", format, QUALITY)
        written[f"{format} store"] = sorted((folder / format).iterdir())
        if format == "raw":
            continue
        paths = [folder / "files" / f"{row}.{format}" for row in range(len(pictures))]
        paths[0].parent.mkdir(exist_ok=True)
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(encode(picture, format, QUALITY))
        written[f"{format} files"] = paths
    os.sync()  # what is not yet on the disk cannot be forgotten
    return written


def readers(folder: Path, written: dict[str, list[Path]]) -> dict[str, Callable[[Rows], Pixels]]:
    """Functions of rows by name; stores are opened anew, for pages that are mapped are not forgotten."""

    def opencv(path: Path) -> Pixels:
        return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)

    def pillow(path: Path) -> Pixels:
        with Image.open(path) as image:
            return np.asarray(image)

    found: dict[str, Callable[[Rows], Pixels]] = {
        f"{format} store": CropStore(folder / f"{format}.json").__getitem__ for format in FORMATS
    }
    for format in ("png", "jpeg"):
        for name, read in (("OpenCV", opencv), ("Pillow", pillow)):
            found[f"{format} files, {name}"] = by_file(read, written[f"{format} files"])
    return found


def forget(paths: list[Path]) -> None:
    """Ask the kernel to drop files from the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def from_disk() -> int:
    """Bytes this process has had fetched from a disk; 0 where the system does not say."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["read_bytes"])
    except (OSError, KeyError):
        return 0


def warm(folder: Path, written: dict[str, list[Path]], batches: list[Rows]) -> dict[str, float]:
    """Median images/s of each reader; the first batch of all is not timed."""
    taking = readers(folder, written)
    took: dict[str, list[float]] = {name: [] for name in taking}
    for name, read in taking.items():
        for path in written[name.split(",")[0]]:
            path.read_bytes()
        read(batches[0])
    for rows in batches:
        for name, read in taking.items():
            start = time.perf_counter()
            read(rows)
            took[name].append(time.perf_counter() - start)
    return {name: BATCH / statistics.median(times) for name, times in took.items()}


def cold(
    folder: Path, written: dict[str, list[Path]], batches: list[Rows]
) -> tuple[dict[str, float], dict[str, float]]:
    """Median images/s of each reader, and the MB that came from the disk a batch."""
    took: dict[str, list[float]] = {name: [] for name in readers(folder, written)}
    fetched: dict[str, list[float]] = {name: [] for name in took}
    for rows in batches:
        for name in took:
            files = written[name.split(",")[0]]
            forget(files)
            read, before, start = readers(folder, written)[name], from_disk(), time.perf_counter()
            read(rows)
            took[name].append(time.perf_counter() - start)
            fetched[name].append((from_disk() - before) / 1e6)
            del read
    return (
        {name: BATCH / statistics.median(times) for name, times in took.items()},
        {name: statistics.median(each) for name, each in fetched.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=48)
    parser.add_argument("--batches", type=int, default=12)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    every = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        pictures, what = crops(arguments.photographs, folder / "demo")
        written = write(pictures, folder)
        rng = np.random.default_rng(0)
        batches = [rng.choice(len(pictures), BATCH, replace=False) for _ in range(arguments.batches)]
        print(f"{len(pictures)} crops of {SIZE} px ({what}), JPEG quality {QUALITY} 4:4:4, PNG level 1")
        os.sched_setaffinity(0, {min(every)})
        one = warm(folder, written, batches)
        os.sched_setaffinity(0, every)
        all_cores = warm(folder, written, batches)
        chilled, fetched = cold(folder, written, batches[: max(3, len(batches) // 3)])
        disk = {kind: sum(path.stat().st_size for path in paths) / 1e6 for kind, paths in written.items()}
    print(
        f"{'images/s':22s}{'1 core':>9s}{f'{len(every)} cores':>9s}{'cold':>9s}{'MB read':>9s}{'kB each':>9s}"
    )
    for reader, rate in one.items():
        each = 1000 * disk[reader.split(",")[0]] / len(pictures)
        print(
            f"{reader:22s}{rate:9.0f}{all_cores[reader]:9.0f}{chilled[reader]:9.0f}{fetched[reader]:9.1f}{each:9.0f}"
        )
    jpeg = [f"jpeg files, {name}" for name in ("OpenCV", "Pillow")]
    ratios = [rates["raw store"] / max(rates[name] for name in jpeg) for rates in (one, all_cores)]
    result = {
        "name": "loader_512",
        "value": round(one["raw store"]),
        "unit": f"images/s, random batches of {BATCH} from the raw store, one core, page cache warm",
        "baseline": round(max(one[name] for name in jpeg)),
        "ratio": round(ratios[0], 1),
        "target": FASTER,
        "holds": min(ratios) >= FASTER,
        "ratio_all_cores": round(ratios[1], 1),
        "cores": len(every),
        "one_core": {name: round(rate) for name, rate in one.items()},
        "all_cores": {name: round(rate) for name, rate in all_cores.items()},
        "cold_all_cores": {name: round(rate) for name, rate in chilled.items()},
        "cold_MB_from_disk": {name: round(value, 1) for name, value in fetched.items()},
        "kB_a_crop": {name: round(1000 * value / len(pictures)) for name, value in disk.items()},
        "photographs": what,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Crop speed, memory and scaling: ours against the published method and a bare JPEG decode, in one run.

    uv run python benchmarks/crop.py [--photographs 4] [--repeats 5] [--quality 92] [--workers 1 2]

Photographs are IDRiD's (DRGRADE_IDRID_ROOT), resized to the 4752x3168 of many EyePACS files and saved
again; without them, synthetic ones, which decode faster. All methods start from the file and end with a
512 px crop in memory. Speed is that of one core; memory that of a fresh process which has imported what a
worker of the stage imports; scaling that of a warm pool of workers. Prints tables; the last line is one JSON
object.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFilter

from drgrade.images.contrast import without_local_median
from drgrade.images.crop import centre_square_crop, crop_photograph
from drgrade.images.read import read_photograph
from drgrade.images.rules import find_box
from drgrade.params import Crop

WIDTH, HEIGHT, SIZE = 4752, 3168, 512
FASTER, DECODES, PIXELS, MEGABYTES = 20.0, 1.3, 2.0, 300
"""Targets: times the published method's images/s, times a bare full decode, box error in crop pixels, memory
of a worker."""
OPTIONS = {
    "disc": Crop(rule="disc", size=SIZE),
    "o_O": Crop(rule="o_O", aspect="squash", size=SIZE),
    "graham": Crop(rule="graham", size=SIZE),
    "clpi": Crop(rule="clpi", size=SIZE),
}
ROUNDS = 12
"""Crops of each worker when scaling is measured."""


def published(path: Path) -> Image.Image:
    """Crop of o_O and of lesion-based contrastive learning: full decode, BLUR, box, Lanczos to a square."""
    image = Image.open(path)
    blurred = np.array(image.filter(ImageFilter.BLUR))
    height, width, _ = blurred.shape
    box = None
    if width > 1.2 * height:
        left = blurred[:, : width // 32].max(axis=(0, 1)).astype(int)
        right = blurred[:, width - -(-width // 32) :].max(axis=(0, 1)).astype(int)
        foreground = (blurred > np.maximum(left, right) + 10).astype(np.uint8)
        box = Image.fromarray(foreground).getbbox()
        if box and (box[2] - box[0] < 0.8 * height or box[3] - box[1] < 0.8 * height):
            box = None
    if box is None:
        margin = (width - height) // 2
        box = max(margin, 0), 0, min(width - margin, width), height
    return image.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def painted(seed: int) -> np.ndarray:
    """A reddish disc with smooth texture and noise, cut off at top and bottom."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    inside = np.hypot(columns - WIDTH / 2, rows - HEIGHT / 2) < 0.6 * HEIGHT
    texture = cv2.resize(rng.normal(0, 12, (HEIGHT // 24, WIDTH // 24, 3)), (WIDTH, HEIGHT))
    picture = inside[..., None] * (np.array([150, 80, 40]) + texture) + rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    return picture.clip(0, 255).astype(np.uint8)


def photographs(count: int, quality: int, folder: Path) -> tuple[list[Path], str]:
    """Write ``count`` JPEGs of 4752x3168; returns their paths and what they are."""
    root = os.environ.get("DRGRADE_IDRID_ROOT", "")
    real = sorted(Path(root).glob("*/1. Original Images/*/*.jpg")) if root else []
    paths = []
    for number in range(count):
        if real:
            picture = read_photograph(real[number * len(real) // count])
            picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        else:
            picture = painted(number)
        path = folder / f"{number}.jpg"
        Image.fromarray(picture).save(path, quality=quality)
        paths.append(path)
    megabytes = statistics.mean(path.stat().st_size for path in paths) / 1e6
    kind = "IDRiD photographs, resized" if real else "painted photographs"
    return paths, f"{count} {kind}, {WIDTH}x{HEIGHT}, JPEG quality {quality} 4:2:0, {megabytes:.1f} MB each"


def seconds(tasks: dict[str, Callable[[Path], object]], paths: list[Path], repeats: int) -> dict[str, float]:
    """Mean over photographs of each task's median time, after a warm-up.

    The tasks take turns, so that whatever else the machine does meets them alike.
    """
    medians: dict[str, list[float]] = {name: [] for name in tasks}
    for path in paths:
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for turn in range(repeats + 1):
            for name, task in tasks.items():
                start = time.perf_counter()
                task(path)
                if turn > 0:
                    times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            medians[name].append(statistics.median(values))
    return {name: statistics.mean(values) for name, values in medians.items()}


def box_error(paths: list[Path], rule: str) -> float:
    """Largest distance, in crop pixels, of a box edge from that of the fully decoded photograph."""
    worst = 0.0
    for path in paths:
        _, geometry, _ = crop_photograph(path, OPTIONS[rule])
        picture = read_photograph(path)
        exact = centre_square_crop(picture, SIZE)[1].box if rule == "clpi" else find_box(picture, rule)[0]
        worst = max(worst, np.abs(np.subtract(geometry.box, exact)).max() * geometry.scale)
    return float(worst)


def clpi_difference(paths: list[Path]) -> tuple[float, float]:
    """Mean and 99th percentile of the grey levels by which clpi differs from the published, full decode."""
    levels = []
    for path in paths:
        exact = without_local_median(centre_square_crop(read_photograph(path), SIZE)[0])
        levels.append(np.abs(crop_photograph(path, OPTIONS["clpi"])[0].astype(int) - exact))
    return float(np.mean(levels)), float(np.percentile(levels, 99))


def memory(rule: str, paths: list[Path]) -> tuple[float, float]:
    """Peak of a fresh worker that crops all photographs, in MB: above its imports, and in all."""
    program = (
        "import sys; from pathlib import Path; import cv2; import drgrade.images.stage;"
        "from drgrade.images.crop import crop_photograph; from drgrade.params import Crop;"
        "kb = lambda key: int(open('/proc/self/status').read().split(key + ':')[1].split()[0]);"
        "cv2.setNumThreads(1); before = kb('VmRSS'); options = Crop.model_validate_json(sys.argv[1]);"
        "[crop_photograph(Path(path), options) for path in sys.argv[2:]];"
        "print(kb('VmHWM') - before, kb('VmHWM'))"
    )
    command = [sys.executable, "-c", program, OPTIONS[rule].model_dump_json(), *map(str, paths)]
    above, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(above) * 1024 / 1e6, int(total) * 1024 / 1e6


def cropped(path: Path) -> tuple[int, int, int, int]:
    """Crop in a worker; the crop stays there, as in the stage, whose workers write it to the store."""
    return crop_photograph(path, OPTIONS["disc"])[1].box


def pooled(paths: list[Path], workers: int) -> float:
    """Images/s of so many processes, once they are up."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        list(pool.map(cropped, paths[:1] * 4 * workers))
        todo = [paths[number % len(paths)] for number in range(ROUNDS * workers)]
        start = time.perf_counter()
        list(pool.map(cropped, todo))
        return len(todo) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quality", type=int, default=92)
    cores = os.cpu_count() or 1
    every = sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})
    parser.add_argument("--workers", type=int, nargs="+", default=every)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    tasks: dict[str, Callable[[Path], object]] = {
        rule: partial(crop_photograph, options=options) for rule, options in OPTIONS.items()
    }
    tasks["published method"] = published
    tasks["bare full decode"] = lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    with tempfile.TemporaryDirectory() as folder:
        paths, what = photographs(arguments.photographs, arguments.quality, Path(folder))
        print(
            f"{what}; one core, median of {arguments.repeats}; load average {os.getloadavg()[0]:.1f} before"
        )
        took = seconds(tasks, paths, arguments.repeats)
        error = {rule: box_error(paths, rule) for rule in ("disc", "graham", "clpi")}
        difference = clpi_difference(paths)
        peak = {rule: memory(rule, paths) for rule in OPTIONS}
        scaling = {workers: pooled(paths, workers) for workers in arguments.workers}
    report(took, error, difference, peak, scaling, what)


def report(
    took: dict[str, float],
    error: dict[str, float],
    difference: tuple[float, float],
    peak: dict[str, tuple[float, float]],
    scaling: dict[int, float],
    what: str,
) -> None:
    """Print the tables, then the JSON line."""
    for name, value in took.items():
        beside = f"{value / took['bare full decode']:7.2f} bare decodes"
        memory_used = "worker peak {1:.0f} MB, {0:.0f} above its imports".format(*peak.get(name, (0, 0)))
        print(
            f"{name:18s}{1000 * value:9.1f} ms {1 / value:9.2f} images/s {beside}",
            memory_used * (name in peak),
        )
    for rule, value in error.items():
        print(f"{rule}: box within {value:.2f} px of that of the full decode (target <= {PIXELS})")
    print(
        "clpi: {:.1f} grey levels from the published crop on average, 99 % within {:.0f}".format(*difference)
    )
    for workers, value in scaling.items():
        print(f"disc, {workers} workers: {value:.1f} images/s")
    ratio = took["published method"] / took["disc"]
    decodes = took["disc"] / took["bare full decode"]
    most = max(total for _, total in peak.values())
    fits = decodes <= DECODES and max(error.values()) <= PIXELS and most < MEGABYTES
    result = {
        "name": "crop_512",
        "value": round(1 / took["disc"], 2),
        "unit": "images/s/core",
        "baseline": round(1 / took["published method"], 3),
        "ratio": round(ratio, 2),
        "target": FASTER,
        "holds": ratio >= FASTER and fits,
        "bare_decodes": round(decodes, 3),
        "box_error_px": round(max(error.values()), 3),
        "worker_peak_mb": {rule: round(total) for rule, (_, total) in peak.items()},
        "above_imports_mb": {rule: round(above) for rule, (above, _) in peak.items()},
        "images_per_second_by_workers": {str(workers): round(value, 1) for workers, value in scaling.items()},
        "photographs": what,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

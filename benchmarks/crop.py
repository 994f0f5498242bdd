"""Crop speed on one core: ours against the published method and a bare JPEG decode, in one run.

    uv run python benchmarks/crop.py [--photographs 4] [--repeats 5] [--quality 92]

Photographs are IDRiD's (DRGRADE_IDRID_ROOT), resized to the 4752x3168 of many EyePACS files and saved
again; without them, painted ones, which decode faster. Both methods start from the file and end with a
512 px crop in memory. Prints a table; the last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFilter

from drgrade.images.crop import crop_photograph
from drgrade.images.read import read_photograph
from drgrade.images.rules import find_box
from drgrade.params import Crop

WIDTH, HEIGHT, SIZE = 4752, 3168, 512
FASTER, DECODES, PIXELS = 20.0, 1.3, 2.0
"""Targets: times the published method's images/s, times a bare full decode, box error in crop pixels."""


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


def box_error(paths: list[Path], options: Crop) -> float:
    """Largest distance, in crop pixels, of a box edge from that of the fully decoded photograph."""
    worst = 0.0
    for path in paths:
        _, geometry, _ = crop_photograph(path, options)
        exact, _ = find_box(read_photograph(path), "disc")
        worst = max(worst, np.abs(np.subtract(geometry.box, exact)).max() * geometry.scale)
    return float(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quality", type=int, default=92)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    options = Crop(rule="disc", size=SIZE)
    tasks: dict[str, Callable[[Path], object]] = {
        "ours (disc)": lambda path: crop_photograph(path, options),
        "ours (o_O)": lambda path: crop_photograph(path, Crop(rule="o_O", aspect="squash", size=SIZE)),
        "published method": published,
        "bare full decode": lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths, what = photographs(arguments.photographs, arguments.quality, Path(folder))
        print(f"{what}; one core, median of {arguments.repeats}")
        took = seconds(tasks, paths, arguments.repeats)
        error = box_error(paths, options)
    for name, value in took.items():
        print(f"{name:18s}{1000 * value:9.1f} ms {1 / value:9.2f} images/s")
    ratio = took["published method"] / took["ours (disc)"]
    decodes = took["ours (disc)"] / took["bare full decode"]
    print(f"{decodes:.2f} bare decodes (target <= {DECODES}); box within {error:.2f} px (target <= {PIXELS})")
    result = {
        "name": "crop_512",
        "value": round(1 / took["ours (disc)"], 2),
        "unit": "images/s/core",
        "baseline": round(1 / took["published method"], 3),
        "ratio": round(ratio, 2),
        "target": FASTER,
        "holds": ratio >= FASTER and decodes <= DECODES and error <= PIXELS,
        "bare_decodes": round(decodes, 3),
        "box_error_px": round(error, 3),
        "photographs": what,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Grade photographs of 12 megapixels: ``drgrade predict`` against a plain loop, in one run.

    uv run python benchmarks/predict.py [--photographs 1000] [--repeats 3]

The model is an untrained EfficientNet-Lite0 at 288 px. A few distinct photographs of 4000x3000 px, IDRiD's
resized (DRGRADE_IDRID_ROOT) or painted ones, stand under as many names as asked for, as links to the same
files. Ours is the whole command in a process of its own, with imports and the start of its workers. The
plain loop does less: it reads, resizes and grades one photograph after the other, without a search for the
eye, quality or damaged files, and with all cores for decoder and network where they use them; its process is
warm and its time is extrapolated from a tenth of the photographs. The limit is to decode all photographs, at
the resolution that ours needs and whole, in as many processes as there are cores. All take turns. Prints a
table; the last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drgrade.grading.finetune import Finetune, Params
from drgrade.images import jpeg
from drgrade.images.read import read_photograph
from drgrade.images.workers import in_order
from drgrade.params import Crop

WIDTH, HEIGHT, SIZE = 4000, 3000, 288
SECONDS = 180.0
"""Target for 1,000 photographs on 2 cores."""
DISTINCT, QUALITY = 4, 92
CHUNK = 8
CORES = len(os.sched_getaffinity(0))


def painted(seed: int) -> np.ndarray:
    """A reddish disc with smooth texture and noise, cut off at top and bottom."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    inside = np.hypot(columns - WIDTH / 2, rows - HEIGHT / 2) < 0.55 * HEIGHT
    texture = cv2.resize(rng.normal(0, 12, (HEIGHT // 24, WIDTH // 24, 3)), (WIDTH, HEIGHT))
    image = inside[..., None] * (np.array([150, 80, 40]) + texture) + rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    return image.clip(0, 255).astype(np.uint8)


def photographs(count: int, folder: Path) -> tuple[list[Path], str]:
    """Write DISTINCT photographs and link ``count`` names to them; returns the names and what they are."""
    root = os.environ.get("DRGRADE_IDRID_ROOT", "")
    real = sorted(Path(root).glob("*/1. Original Images/*/*.jpg")) if root else []
    originals = []
    for number in range(DISTINCT):
        if real:
            image = read_photograph(real[number * len(real) // DISTINCT])
            image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        else:
            image = painted(number)
        originals.append(folder / f"original{number}.jpg")
        Image.fromarray(image).save(originals[-1], quality=QUALITY)
    links = folder / "photographs"
    links.mkdir()
    paths = [links / f"{number // 2}_{'left' if number % 2 else 'right'}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.hardlink_to(originals[number % DISTINCT])
    megabytes = statistics.mean(path.stat().st_size for path in originals) / 1e6
    kind = "IDRiD photographs, resized" if real else "painted photographs"
    return paths, f"{DISTINCT} {kind}, {WIDTH}x{HEIGHT}, JPEG quality {QUALITY}, {megabytes:.1f} MB each"


def untrained(folder: Path) -> Finetune:
    """Save an untrained model of the default encoder; returns it."""
    grader = Finetune(Params(input_size=SIZE), Crop(size=SIZE))
    grader.network = grader.new_network("random").eval()
    grader.save(folder)
    return grader


def ours(folder: Path, model: Path, out: Path) -> None:
    """The command, which must grade every photograph."""
    verb = [sys.executable, "-m", "drgrade", "predict"]
    command = [*verb, str(folder), "--model", str(model), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or out.read_text().count(",ok,") != sum(1 for _ in folder.iterdir()):
        raise SystemExit(f"{done.stderr[-2000:]}\nnot every photograph was graded")


def plain_loop(grader: Finetune, paths: Sequence[Path]) -> None:
    """Read, resize, normalise and grade one photograph after the other."""
    import torch  # not at the top, as worker processes import this file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = grader.network.to(device)
    mean = torch.tensor(grader.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(grader.preprocess.std).view(3, 1, 1)
    for path in paths:
        image = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        inputs = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
        with torch.inference_mode():
            network(inputs[None].to(device))


def decode(factor: int, paths: Sequence[Path]) -> int:
    """Decode photographs at 1/factor of their resolution; returns their number."""
    return sum(jpeg.decode(path.read_bytes(), factor).ndim == 3 for path in paths)


def decode_all(factor: int, paths: Sequence[Path]) -> None:
    """Decode all photographs in as many processes as there are cores."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    assert sum(in_order(partial(decode, factor), chunks, CORES)) == len(paths)


def medians(tasks: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each task after a warm-up; the tasks take turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade photographs of 12 megapixels, against a plain loop.")
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.photographs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, what = photographs(count, folder)
        grader = untrained(folder / "model")
        some = paths[: max(1, count // 10)]
        tasks = {
            "drgrade predict": partial(ours, folder / "photographs", folder / "model", folder / "grades.csv"),
            "plain loop": partial(plain_loop, grader, some),
            "decode an eighth": partial(decode_all, 8, paths),
            "decode whole": partial(decode_all, 1, paths),
        }
        print(f"{what}; {CORES} cores; load average {os.getloadavg()[0]:.1f} before", flush=True)
        took = medians(tasks, arguments.repeats)
    took["plain loop"] *= count / len(some)
    for task, value in took.items():
        print(f"{task:18s}{value:9.1f} s for {count} photographs {count / value:9.2f} photographs/s")
    own, target = took["drgrade predict"], SECONDS * count / 1000
    result = {
        "name": "predict_12_megapixels",
        "value": round(own, 1),
        "unit": f"s for {count} photographs",
        "baseline": round(took["plain loop"], 1),
        "ratio": round(took["plain loop"] / own, 2),
        "target": round(target, 1),
        "holds": own < target,
        "decode_eighth_s": round(took["decode an eighth"], 1),
        "decode_whole_s": round(took["decode whole"], 1),
        "cores": CORES,
        "photographs": what,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

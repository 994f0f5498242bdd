"""How well the quality score tells spoilt photographs from good ones, beside the variance of the Laplacian.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/quality.py [--photographs 60]

Graded photographs of IDRiD (all of them were good enough for a reader) and copies with one fault each,
applied at their reduced resolution of some 500 pixels. The figure is the area under the ROC curve: the chance
that a spoilt copy scores lower than a good photograph. Without IDRiD there is nothing to measure, and it says
so. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from sklearn.metrics import roc_auc_score

from drgrade.images.quality import measure
from drgrade.images.read import read_reduced
from drgrade.images.rules import RGBImage, fit_disc

TARGET = 0.9


def hazed(picture: RGBImage, haze: float) -> RGBImage:
    veil = 150.0 * (picture.max(axis=2, keepdims=True) > 15)
    return ((1 - haze) * picture + haze * veil).astype(np.uint8)


FAULTS: dict[str, Callable[[RGBImage], RGBImage]] = {
    "blur, sigma 2 px": lambda picture: cv2.GaussianBlur(picture, (0, 0), 2).astype(np.uint8),
    "blur, sigma 3 px": lambda picture: cv2.GaussianBlur(picture, (0, 0), 3).astype(np.uint8),
    "blur, sigma 4 px": lambda picture: cv2.GaussianBlur(picture, (0, 0), 4).astype(np.uint8),
    "light x 0.3": lambda picture: (0.3 * picture).astype(np.uint8),
    "light x 0.15": lambda picture: (0.15 * picture).astype(np.uint8),
    "haze 0.5": lambda picture: hazed(picture, 0.5),
    "haze 0.7": lambda picture: hazed(picture, 0.7),
}


def ours(picture: RGBImage) -> float:
    return measure(picture, fit_disc(picture)).score


def laplacian(picture: RGBImage) -> float:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=int, default=60)
    count = parser.parse_args().photographs
    root = os.environ.get("DRGRADE_IDRID_ROOT", "")
    paths = sorted(Path(root).glob("B. Disease Grading/1. Original Images/*/*.jpg")) if root else []
    if not paths:
        sys.exit("no real photographs: set DRGRADE_IDRID_ROOT to a folder in IDRiD's official layout")
    cv2.setNumThreads(1)
    pictures = [read_reduced(path, 320)[0] for path in paths[:: -(-len(paths) // count)]]
    start = time.perf_counter()
    good = {method.__name__: [method(picture) for picture in pictures] for method in (ours, laplacian)}
    middle, lowest = statistics.median(good["ours"]), min(good["ours"])
    print(f"{len(pictures)} photographs; score of the good ones: median {middle:.2f}, lowest {lowest:.2f}")
    truth = [0] * len(pictures) + [1] * len(pictures)
    areas: dict[str, list[float]] = {"ours": [], "laplacian": []}
    print(f"{'fault':18s}{'ours':>8s}{'Laplacian':>11s}   median score")
    for name, fault in FAULTS.items():
        spoilt = [fault(picture) for picture in pictures]
        for method in (ours, laplacian):
            scores = [method(picture) for picture in spoilt]
            areas[method.__name__].append(
                float(roc_auc_score(truth, [-v for v in good[method.__name__] + scores]))
            )
            if method is ours:
                middle = statistics.median(scores)
        print(f"{name:18s}{areas['ours'][-1]:8.3f}{areas['laplacian'][-1]:11.3f}{middle:15.2f}")
    value, baseline = (statistics.mean(areas[name]) for name in ("ours", "laplacian"))
    result = {
        "name": "quality_auc",
        "value": round(value, 3),
        "unit": "mean AUC over faults",
        "baseline": round(baseline, 3),
        "ratio": round(value / baseline, 3),
        "target": TARGET,
        "holds": value >= TARGET,
        "photographs": len(pictures),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Lesion detection on tiles against whole photographs: the same detector, the same training time, real eyes.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/tiles.py [--report]

Six folds over IDRiD's photographs with masks that are there (seed 1), and seeds 2 and 3 on the first fold;
in each, three photographs are for the test, three validate, the others train; nothing is chosen on any. The
detector is faster-rcnn_lite0_fpn_tiles from ImageNet weights, whichever way. The baseline sees whole
photographs at the scale of Huang et al., MICCAI 2021 (4288 px to 1600 px, specification 5), ours tiles of
512 px at half resolution. Both are taught the same boxes, with sides of at least 22 px in the photograph.
Epochs are set so that either trains for about eight minutes on two cores.

A run that was killed goes on where it was: finished runs wait in .cache/drgrade/benchmarks/tiles. --report
skips the training of what is missing. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drgrade.data.registry import DATASETS, raw_root
from drgrade.files import write_json
from drgrade.images.read import read_photograph
from drgrade.images.rules import find_box
from drgrade.lesions.box_sources import drawn
from drgrade.lesions.coco import make_lesion_boxes
from drgrade.lesions.detector import train_detector
from drgrade.lesions.froc import Statistic, ap50, once, paired_difference, sensitivity
from drgrade.lesions.matching import Matches, match
from drgrade.lesions.predict import detect_lesions
from drgrade.params import Detector, LesionBoxes, Lesions
from drgrade.schema import CROPS, INDEX, LESION_BOXES, LESIONS, read_table, write_table

WORK = Path(".cache/drgrade/benchmarks/tiles")
FOLDS, SEEDS = 6, (1, 2, 3)
MIN_SIDE = 22
"""Least side of a box in the photograph's pixels: 8 px at the paper's scale, 11 px at half resolution."""
SEARCH = Lesions(batch_size=4, min_score=0.02, max_per_image=1000)


@dataclass(frozen=True)
class Arm:
    """One of the two ways."""

    boxes: LesionBoxes
    epochs: int
    batch_size: int
    lr: float

    def detector(self, seed: int) -> Detector:
        """Parameters of a training."""
        return Detector(
            config="faster-rcnn_lite0_fpn_tiles", epochs=self.epochs, batch_size=self.batch_size, lr=self.lr,
            background_tiles=0.25, seed=seed,
        )  # fmt: skip


ARMS = {
    "tiles": Arm(LesionBoxes(tile=512, scale=0.5, min_side=11), epochs=10, batch_size=4, lr=0.001),
    "whole": Arm(LesionBoxes(tile=None, scale=1600 / 4288, min_side=8), epochs=18, batch_size=1, lr=0.001),
}
RUNS = [(fold, SEEDS[0]) for fold in range(FOLDS)] + [(0, seed) for seed in SEEDS[1:]]


class Unrecorded:
    """Stands in for the MLflow run."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Print an epoch."""
        print(f"  epoch {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()), file=sys.stderr)


@cache
def photographs() -> dict[str, str]:
    """Image_id and path of the photographs with masks in IDRiD's training set."""
    rows = DATASETS.get("idrid")().read(raw_root("idrid"))
    return {
        i: path for i, path in zip(rows["image_id"], rows["path"], strict=True) if i.startswith("A_train")
    }


def parts(fold: int) -> dict[str, list[str]]:
    """Names of the photographs to train on, to choose thresholds on, and to test on."""
    names = sorted(photographs())
    test, val = names[fold::FOLDS], names[(fold + 1) % FOLDS :: FOLDS]
    return {"train": [n for n in names if n not in test + val], "val": val, "test": test}


def prepare() -> None:
    """Tables of the photographs, what is on them, and the images both ways train on."""
    if (WORK / "truth.parquet").exists():
        return
    root, index, crops = raw_root("idrid"), [], []
    for name, path in photographs().items():
        picture = read_photograph(root / path)
        box, _ = find_box(picture, "disc")
        size = {"width": picture.shape[1], "height": picture.shape[0]}
        index.append({"image_id": name, "path": path, "subset": "segmentation", "status": "ok"} | size)
        crops.append(
            {"image_id": name, "status": "ok"} | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        )
    table = pd.DataFrame(index).reindex(columns=list(INDEX))
    table["split"] = ["val"] + ["train"] * (len(table) - 1)  # the cut wants both; folds are made from all
    write_table(table, WORK / "index.parquet", INDEX)
    write_table(pd.DataFrame(crops).reindex(columns=list(CROPS)), WORK / "crops.parquet", CROPS)
    for way, arm in ARMS.items():
        make_lesion_boxes("idrid", WORK / "index.parquet", WORK / "crops.parquet", arm.boxes, WORK / way)
    drawn("idrid", table, ARMS["tiles"].boxes).drop(columns="score").to_parquet(WORK / "truth.parquet")


def choose(folder: Path, names: list[str], out: Path) -> None:
    """The COCO file of these photographs alone."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    for file in (folder / "train.json", folder / "val.json"):
        coco = json.loads(file.read_text())
        ours = {i["id"] for i in coco["images"] if i["file_name"].split("__x")[0] in names}
        shift = 1_000_000 if file.stem == "val" else 0
        for image in coco["images"]:
            if image["id"] in ours:
                content["images"].append(image | {"id": image["id"] + shift})
        for row in coco["annotations"]:
            if row["image_id"] in ours:
                moved = {"id": row["id"] + shift, "image_id": row["image_id"] + shift}
                content["annotations"].append(row | moved)
    write_json(content | {"categories": coco["categories"]}, out)


def run(way: str, fold: int, seed: int) -> None:
    """Train and search; writes lesions.parquet and cost.json."""
    warnings.simplefilter("ignore")
    arm, folder = ARMS[way], WORK / f"{way}-{fold}-{seed}"
    boxes = folder / "boxes"
    boxes.mkdir(parents=True, exist_ok=True)
    chosen = parts(fold)
    for split in ("train", "val"):
        choose(WORK / way, chosen[split], boxes / f"{split}.json")
    if not (boxes / "images").is_symlink():
        (boxes / "images").symlink_to((WORK / way / "images").resolve())
    used, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    train_detector(boxes, arm.detector(seed), folder / "detector", Unrecorded())  # type: ignore[arg-type]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    index = read_table(WORK / "index.parquet", INDEX)
    index = index[index["image_id"].isin(chosen["val"] + chosen["test"])]
    write_table(index, folder / "index.parquet", INDEX)
    cost = {"minutes": (time.perf_counter() - begin) / 60, "core_minutes": cpu / 60}
    detect_lesions(
        "idrid", folder / "index.parquet", WORK / "crops.parquet", folder / "detector", arm.boxes, SEARCH,
        folder / "lesions.parquet",
    )  # fmt: skip
    write_json(cost, folder / "cost.json")


def apart(way: str, fold: int, seed: int) -> None:
    """Train and search, unless it is done, in a process of its own: MMEngine keeps state."""
    if not cost_of(way, fold, seed).exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(run, way, fold, seed).result()
        print(way, fold, seed, cost_of(way, fold, seed).read_text().split(), file=sys.stderr, flush=True)


def matches_of(way: str, runs: list[tuple[int, int]]) -> Matches:
    """What a way found on the test photographs of some runs, against what is there."""
    truth, tables, names = pd.read_parquet(WORK / "truth.parquet"), [], []
    for fold, seed in runs:
        test = parts(fold)["test"]
        found = read_table(WORK / f"{way}-{fold}-{seed}" / "lesions.parquet", LESION_BOXES)
        tables.append(found[found["image_id"].isin(test)])
        names += test
    return match(truth[truth["image_id"].isin(names)], pd.concat(tables), names, min_side=MIN_SIDE)


def ma_at_one(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Sensitivity for microaneurysms at one false alarm a photograph."""
    return sensitivity(matches.of("MA"), weights, (1.0,))[:, 0]


def ma_by_detector(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """The same, each fold's detector at its own threshold: one false alarm a photograph of its test.

    Six detectors wrote the scores, and one's 0.8 is not another's.
    """
    kind = matches.of("MA")
    place = kind.photograph[kind.truth["image"].to_numpy()]
    found, lesions = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in range(FOLDS):
        own = weights * np.isin(matches.names, parts(fold)["test"])
        there = own[:, place].sum(axis=1)
        found += np.nan_to_num(ma_at_one(kind, own)) * there
        lesions += there
    return found / lesions


FIGURES: dict[str, Statistic] = {
    "AP50": ap50, "MA at 1, each detector": ma_by_detector, "MA at 1, scores pooled": ma_at_one,
}  # fmt: skip
TOP = 30
TARGETS = ("AP50", "MA at 1, each detector")
"""Figures in which tiles shall be better."""


def out_of_fold(runs: list[tuple[int, int]]) -> dict[str, dict[str, float]]:
    """Prints both ways on every photograph when it was in the test; returns their paired differences."""
    pooled = {way: matches_of(way, runs) for way in ARMS}
    print(f"{len(pooled['tiles'].names)} photographs, each out of fold (seed {SEEDS[0]})")
    print(
        f"{'':10s}{'lesions':>9s}"
        + "".join(f"{way + ' ' + what:>20s}" for what in ("AP50", "at 1", "at 8") for way in ARMS)
    )
    for lesion in ("all", *LESIONS):
        row = {way: m if lesion == "all" else m.of(lesion) for way, m in pooled.items()}
        read = {way: sensitivity(m, once(m), (1.0, 8.0))[0] for way, m in row.items()}
        columns = [float(ap50(m, once(m))[0]) for m in row.values()]
        columns += [float(read[way][place]) for place in (0, 1) for way in ARMS]
        print(f"{lesion:10s}{len(row['tiles'].truth):9d}" + "".join(f"{value:20.3f}" for value in columns))
    for way, matches in pooled.items():
        alarms = matches.of("MA").found.query("not hit").head(TOP)["image"]
        photograph, count = Counter(matches.names[matches.photograph[i]] for i in alarms).most_common(1)[0]
        print(f"{way}: {count} of the {TOP} best-scored false microaneurysms are on {photograph}")
    gains = {
        name: paired_difference(pooled["tiles"], pooled["whole"], figure) for name, figure in FIGURES.items()
    }
    for name, gain in gains.items():
        print(
            f"{name}: tiles {gain['first']:.3f}, whole {gain['second']:.3f}, difference "
            f"{gain['difference']:.3f} (95 % interval {gain['low']:.3f} to {gain['high']:.3f}, paired "
            "bootstrap over photographs)"
        )
    return gains


def over_seeds() -> None:
    """Prints the figures on the first fold for each seed."""
    print(f"\nfirst fold, seeds {', '.join(map(str, SEEDS))}")
    for name, figure in FIGURES.items():
        for way in ARMS:
            each = [float(figure(m, once(m))[0]) for m in (matches_of(way, [(0, seed)]) for seed in SEEDS)]
            values = ", ".join(f"{value:.3f}" for value in each)
            spread = f"mean {statistics.mean(each):.3f}, sd {statistics.stdev(each):.3f}"
            print(f"{name:24s}{way:8s}{values}   {spread}")


def costs() -> None:
    """Prints what the trainings took."""
    for way in ARMS:
        told = [json.loads(cost_of(way, *one).read_text()) for one in RUNS]
        minutes, cores = (statistics.median(one[key] for one in told) for key in ("minutes", "core_minutes"))
        print(f"{way:8s}{minutes:6.1f} minutes a training (median), {cores:.1f} core minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing, report what is there")
    arguments = parser.parse_args()
    prepare()
    missing = [(way, *one) for one in RUNS for way in ARMS if not cost_of(way, *one).exists()]
    if not arguments.report:
        for one in missing:
            apart(*one)
        missing = []
    done = [one for one in RUNS if not any(one == left[1:] for left in missing)]
    if missing:
        print(f"{len(missing)} trainings are missing")
    gains = out_of_fold([one for one in done if one[1] == SEEDS[0]])
    if not missing:
        over_seeds()
        costs()
    tiles, whole = gains["AP50"]["first"], gains["AP50"]["second"]
    result = {
        "name": "tiles",
        "value": round(tiles, 3),
        "unit": "AP50 of IDRiD's lesions out of fold, tiles; baseline: whole photographs at 1600 px",
        "baseline": round(whole, 3),
        "ratio": round(tiles / whole, 2),
        "target": f"differences in {' and '.join(TARGETS)} above 0 with their 95 % intervals",
        "holds": not missing and all(gains[name]["low"] > 0 for name in TARGETS),
        "gains": {
            name: {key: round(value, 3) for key, value in gain.items()} for name, gain in gains.items()
        },
    }
    print(json.dumps(result))


def cost_of(way: str, fold: int, seed: int) -> Path:
    """The file a finished run leaves."""
    return WORK / f"{way}-{fold}-{seed}" / "cost.json"


if __name__ == "__main__":
    main()

"""Boxes around lesions that the segmentation marks, against those of the detector on tiles: real eyes.

    DRGRADE_IDRID_ROOT=/path/to/IDRiD uv run python benchmarks/lesion_marks.py [--report]

Each of IDRiD's photographs with masks that are there is searched by a network that has not seen it: the
segmentation of ``params/idrid-segmentation.yaml`` (six folds), and the detector on tiles of tiles.py (its six
folds, which are others), whose runs are used. Boxes of both have sides of at least 22 px in the photograph,
as the lesions' boxes have for matching. Two rules say what a hit is: an IoU of 0.5, and a detection whose
centre lies in the lesion's box. Intervals are a bootstrap over the photographs. A run that was killed goes on
where it was; --report trains nothing and leaves out what is missing. The last line is one JSON object:
sensitivity for microaneurysms at one false positive per photograph, by the centre.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import tiles
import yaml
from checkout import ROOT, checkout, side_by_side
from matplotlib.figure import Figure

from drgrade.bootstrap import interval
from drgrade.lesions.froc import Statistic, ap50, bootstrap, once, paired_difference, sensitivity
from drgrade.lesions.matching import Matches, Rule, match
from drgrade.lesions.predict import detect_lesions
from drgrade.params import Lesions
from drgrade.schema import INDEX, LESION_BOXES, LESION_NAMES, LESIONS, read_table
from drgrade.segmentation.measure import load_networks
from drgrade.segmentation.parts import parts

WORK = Path(".cache/drgrade/benchmarks/lesion_marks")
PARAMS = ROOT / "params/idrid-segmentation.yaml"
METRICS = "results/idrid/segmentation_metrics/metrics.json"
SEARCH = Lesions(source="segmentation", max_per_image=1000)
BOXES = tiles.ARMS["tiles"].boxes
CHARTED = (0.125, 0.5, 1.0, 2.0, 8.0, 32.0)
"""False positives per photograph of the chart."""
RULES: dict[Rule, str] = {"iou": "IoU of 0.5", "centre": "centre in the lesion's box"}
WAYS = {"marks": "segmentation", "tiles": "detector on tiles"}


def at(rate: float) -> Statistic:
    """Sensitivity at a number of false positives per photograph."""
    return lambda matches, weights: sensitivity(matches, weights, (rate,))[:, 0]


FIGURES: dict[str, Statistic] = {"AP50": ap50, "sensitivity at 1": at(1.0), "at 8": at(8.0)}


def segmented() -> pd.DataFrame:
    """What the segmentation marks on the photographs of its test folds."""
    folder = WORK / "idrid/results/idrid"
    if not (folder / "segmentation").is_dir():
        raise SystemExit(f"{folder / 'segmentation'}: no networks; run without --report")
    files = folder / "index/index.parquet", folder / "crop/crops.parquet"
    index, found = read_table(files[0], INDEX), []
    for part, network in load_networks(folder / "segmentation").items():
        split, out = parts(index, network.params)[part], WORK / f"{part}/lesions.parquet"
        tested = split.index[split == "test"]
        if not out.is_file():
            model = folder / f"segmentation/{part}/model"
            detect_lesions("idrid", *files, model, BOXES, SEARCH, out, select=partial(chosen, tested))
        found.append(read_table(out, LESION_BOXES))
    return pd.concat(found, ignore_index=True)


def chosen(names: pd.Index, index: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the rows of an index with these names."""
    return index["image_id"].isin(names)


def detected() -> pd.DataFrame | None:
    """What the detector found on the photographs of its test folds; None if a run is missing."""
    parts = []
    for fold in range(tiles.FOLDS):
        file = tiles.cost_of("tiles", fold, tiles.SEEDS[0]).with_name("lesions.parquet")
        if not file.is_file():
            return None
        found = pd.read_parquet(file)
        parts.append(found[found["image_id"].isin(tiles.parts(fold)["test"])])
    return pd.concat(parts, ignore_index=True)


def run(*, train: bool) -> dict[str, pd.DataFrame]:
    """Boxes by way; trains what is missing."""
    folder = WORK / "idrid"
    if train:
        checkout(folder, yaml.safe_load(PARAMS.read_text()))
        side_by_side(folder, "segmentation", targets=(METRICS,))
        for fold in range(tiles.FOLDS):
            tiles.apart("tiles", fold, tiles.SEEDS[0])
    found = {"marks": segmented(), "tiles": detected()}
    return {way: table for way, table in found.items() if table is not None}


def cell(matches: Matches, figure: Statistic) -> str:
    """A figure with its 95 % interval."""
    low, high = interval(bootstrap(matches, figure))
    return f"{float(figure(matches, once(matches))[0]):.3f} ({low:.3f} to {high:.3f})"


def table(matched: dict[str, Matches], rule: Rule) -> None:
    """Print the figures of each way and kind."""
    columns = [f"{name}: {WAYS[way]}" for name in FIGURES for way in matched]
    print(f"\n| {RULES[rule]} | lesions | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for lesion in ("all", *LESIONS):
        rows = {way: one if lesion == "all" else one.of(lesion) for way, one in matched.items()}
        cells = [cell(one, figure) for figure in FIGURES.values() for one in rows.values()]
        print(f"| {lesion} | {len(next(iter(rows.values())).truth)} | " + " | ".join(cells) + " |")


def chart(matched: dict[str, Matches], path: Path) -> None:
    """Draw the sensitivity of each way by false positives per photograph, a panel for each kind of lesion."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(LESIONS), sharey=True)
    curve: Statistic = partial(sensitivity, rates=CHARTED)
    for panel, lesion in zip(panels, LESIONS, strict=True):
        for way, matches in matched.items():
            own = matches.of(lesion)
            low, high = interval(bootstrap(own, curve))
            (line,) = panel.plot(CHARTED, curve(own, once(own))[0], marker="o", label=WAYS[way])
            panel.fill_between(CHARTED, low, high, alpha=0.2, color=line.get_color())
        panel.set(title=f"{LESION_NAMES[lesion]}s", xscale="log", ylim=(0, 1))
        panel.set_xlabel("false positives per photograph")
        panel.set_xticks(CHARTED, [f"{rate:g}" for rate in CHARTED])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("sensitivity")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def gain(matched: dict[str, Matches], figure: Statistic) -> dict[str, float] | None:
    """Segmentation minus detector, with its interval; None without the detector."""
    if len(matched) < 2:
        return None
    found = paired_difference(matched["marks"], matched["tiles"], figure)
    value, low, high = (found[key] for key in ("difference", "low", "high"))
    print(f"segmentation minus detector: {value:+.3f} ({low:+.3f} to {high:+.3f})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing, report what is there")
    found = run(train=not parser.parse_args().report)
    tiles.prepare()
    truth, names = pd.read_parquet(tiles.WORK / "truth.parquet"), sorted(tiles.photographs())
    matched: dict[Rule, dict[str, Matches]] = {
        rule: {
            way: match(truth, boxes, names, rule=rule, min_side=tiles.MIN_SIDE)
            for way, boxes in found.items()
        }
        for rule in RULES
    }
    print(f"{len(names)} photographs, each searched by a network that has not seen it")
    for rule, ways in matched.items():
        table(ways, rule)
    chart(matched["centre"], WORK / "idrid_lesions.png")
    print("\nmicroaneurysms at 1 false positive per photograph, by the centre")
    own = {way: one.of("MA") for way, one in matched["centre"].items()}
    difference = gain(own, at(1.0))
    values = {way: float(at(1.0)(one, once(one))[0]) for way, one in own.items()}
    baseline = values.get("tiles")
    result: dict[str, Any] = {
        "name": "lesion_marks",
        "value": round(values["marks"], 3),
        "unit": "sensitivity for microaneurysms at 1 false positive per photograph, by the centre, out of "
        "fold; baseline: the detector on tiles",
        "baseline": None if baseline is None else round(baseline, 3),
        "ratio": None if not baseline else round(values["marks"] / baseline, 2),
        "target": "the difference above 0 with its 95 % interval",
        "holds": difference is not None and difference["low"] > 0,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

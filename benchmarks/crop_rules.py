"""What each crop rule does to every photograph of a dataset: a table, and contact sheets to look at.

    uv run python benchmarks/crop_rules.py --dataset idrid [--index index.parquet] [--sheets FOLDER]

Photographs come from the dataset's own reader, or from the rows of an index. For each rule the table says
how many photographs it cropped, how often it fell back, how much of the retina and of the lesions it kept,
and how much of what it kept is not retina. ``*_outlines.jpg`` shows a dozen originals with the outlines of
the crops, ``*_all.jpg`` all of them, small, ``*_crops.jpg`` the crops of a few. The last line is one JSON
object.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drgrade import schema
from drgrade.data.registry import DATASETS, raw_root
from drgrade.images.contrast import KEPT
from drgrade.images.crop import crop_photograph
from drgrade.images.geometry import CropGeometry
from drgrade.images.read import ReadError, read_photograph
from drgrade.images.rules import RGBImage
from drgrade.lesions.masks import read_mask
from drgrade.params import Crop
from drgrade.report.outlines import DISCS, RULE_COLOURS, outline_sheet, outlined, rule_sheet

STEP = 8
"""The retina is looked for in every eighth pixel, both ways."""
LARGE, SMALL = 400, 84
"""Widths of the photographs on the sheets, in pixels."""


@dataclass(frozen=True)
class Task:
    """A photograph, and its masks by lesion."""

    image_id: str
    path: Path
    masks: Mapping[str, Path]


@dataclass(frozen=True)
class Surveyed:
    """One photograph under all rules: by rule who found the crop, and shares from 0 to 1."""

    error: str = ""
    found_by: dict[str, str] = field(default_factory=dict)
    retina: dict[str, float] = field(default_factory=dict)
    empty: dict[str, float] = field(default_factory=dict)
    lesions: dict[str, float] = field(default_factory=dict)
    large: RGBImage | None = None
    small: RGBImage | None = None
    crops: dict[str, RGBImage] = field(default_factory=dict)


def kept(points: np.ndarray, rule: str, geometry: CropGeometry) -> np.ndarray:
    """Which points (n, 2) of a photograph lie in what the rule keeps of its crop."""
    place = geometry.to_crop(points) / geometry.size
    if rule in DISCS:
        return np.hypot(place[:, 0] - 0.5, place[:, 1] - 0.5) <= KEPT
    return np.all((place >= 0) & (place <= 1), axis=1)


def retina(picture: RGBImage) -> np.ndarray:
    """Centres (n, 2) of the sampled pixels that are brighter than a quarter of the middle's median.

    It knows nothing of discs, so that it can contradict every rule.
    """
    grey = cv2.medianBlur(picture[STEP // 2 :: STEP, STEP // 2 :: STEP].max(axis=2), 5)
    height, width = grey.shape
    middle = grey[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return (np.argwhere(grey > np.median(middle) / 4)[:, ::-1] + 0.5) * STEP


def not_retina(points: np.ndarray, rule: str, geometry: CropGeometry) -> float:
    """Share of what the rule keeps, beside the photograph too, that holds none of the retina's points."""
    area = (
        (geometry.x1 - geometry.x0) * (geometry.y1 - geometry.y0) * (np.pi * KEPT**2 if rule in DISCS else 1)
    )
    return max(0.0, 1 - float(kept(points, rule, geometry).sum()) * STEP**2 / area)


def survey(task: Task, size: int, draw: bool) -> Surveyed:
    """Crop one photograph by every rule."""
    cv2.setNumThreads(1)
    try:
        picture = read_photograph(task.path)
        found = {rule: crop_photograph(task.path, Crop(rule=rule, size=size)) for rule in RULE_COLOURS}
    except ReadError as error:
        return Surveyed(f"{task.image_id}: {error}")
    places = {rule: geometry for rule, (_, geometry, _) in found.items()}
    masks = {lesion: read_mask(path) for lesion, path in task.masks.items()}
    lesion = np.concatenate(
        [np.empty((0, 2)), *(np.argwhere(mask)[:, ::-1] + 0.5 for mask in masks.values())]
    )
    seen = retina(picture)
    result = Surveyed(
        found_by={rule: name for rule, (_, _, name) in found.items()},
        retina={rule: kept(seen, rule, place).mean() for rule, place in places.items()},
        empty={rule: not_retina(seen, rule, place) for rule, place in places.items()},
        lesions={rule: kept(lesion, rule, place).mean() for rule, place in places.items() if len(lesion)},
    )
    if not draw:
        return result
    crops = {"photograph": on_square(picture, size)} | {rule: crop for rule, (crop, _, _) in found.items()}
    drawn = [outlined(picture, places, masks, width) for width in (LARGE, SMALL)]
    return replace(result, large=drawn[0], small=drawn[1], crops=crops)


def on_square(picture: RGBImage, size: int) -> RGBImage:
    """The whole photograph on a white square."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    down, across = size - small.shape[0], size - small.shape[1]
    margins = down // 2, down - down // 2, across // 2, across - across // 2
    return cv2.copyMakeBorder(small, *margins, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def listed(dataset: str, index: Path | None, limit: int | None) -> list[Task]:
    """The dataset's photographs, with their masks."""
    reader, root = DATASETS.get(dataset)(), raw_root(dataset)
    rows = schema.read_table(index, schema.INDEX) if index else reader.read(root)
    rows = rows[rows["path"].notna()].head(limit or len(rows))
    return [
        Task(str(image_id), root / path, reader.masks(root, image_id))
        for image_id, path in zip(rows["image_id"], rows["path"], strict=True)
    ]


def summary(results: Sequence[Surveyed], rule: str) -> dict[str, str | int]:
    """A line of the table; percentages as least or most, and median over the photographs."""
    retina, empty = ([100 * getattr(one, what)[rule] for one in results] for what in ("retina", "empty"))
    lesions = [100 * one.lesions[rule] for one in results if one.lesions]
    names = Counter(one.found_by[rule] for one in results)
    return {
        "rule": rule,
        "cropped": len(results),
        "fallbacks": ", ".join(f"{name} {count}" for name, count in names.items() if ":" in name) or "none",
        "retina kept % (least, median)": f"{min(retina):.1f}, {np.median(retina):.1f}",
        "lesions kept % (least, median)": f"{min(lesions):.1f}, {np.median(lesions):.1f}" if lesions else "-",
        "not retina % (median, most)": f"{np.median(empty):.1f}, {max(empty):.1f}",
    }


def few(tasks: Sequence[Task], wanted: int) -> list[int]:
    """Places spread evenly, two thirds over photographs with masks (or as many as there are), masks first."""
    masked = [place for place, task in enumerate(tasks) if task.masks]
    plain = [place for place, task in enumerate(tasks) if not task.masks]
    first = min(len(masked), max(2 * wanted // 3, wanted - len(plain)))
    chosen = []
    for places, count in ((masked, first), (plain, min(wanted - first, len(plain)))):
        chosen += [places[number * len(places) // count] for number in range(count)]
    return chosen


def draw_sheets(stem: str, tasks: Sequence[Task], results: Sequence[Surveyed]) -> None:
    """Write the three sheets, their names after ``stem``."""
    dozen = [(tasks[place].image_id, results[place].large) for place in few(tasks, 12)]
    small = [("", one.small) for one in results]
    rows = [results[place].crops for place in few(tasks, 4)]
    save(Path(f"{stem}_outlines.jpg"), partial(outline_sheet, dozen, 4))
    save(Path(f"{stem}_all.jpg"), partial(outline_sheet, small, 15))
    save(Path(f"{stem}_crops.jpg"), partial(rule_sheet, rows))


def save(path: Path, draw: Callable[[Path], None]) -> None:
    """Sheets are drawn as PNG; photographs are far smaller as JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "sheet.png"
        draw(drawn)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(drawn).convert("RGB").save(path, quality=82, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--index", type=Path, help="take the rows of this index.parquet")
    parser.add_argument("--limit", type=int, help="the first so many photographs")
    parser.add_argument("--size", type=int, default=256, help="side of a crop")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sheets", type=Path, help="folder for the contact sheets")
    arguments = parser.parse_args()
    tasks = listed(arguments.dataset, arguments.index, arguments.limit)
    one = partial(survey, size=arguments.size, draw=bool(arguments.sheets))
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(one, tasks))
    for failed in filter(None, (result.error for result in results)):
        print(failed)
    good = [place for place, result in enumerate(results) if not result.error]
    cropped = [results[place] for place in good]
    for line in (summary(cropped, rule) for rule in RULE_COLOURS):
        print("; ".join(f"{name}: {value}" for name, value in line.items()))
    if arguments.sheets:
        draw_sheets(f"{arguments.sheets / arguments.dataset}", [tasks[place] for place in good], cropped)
    least = min(one.retina["disc"] for one in cropped)
    plain = sum(one.found_by["disc"] == "disc" for one in cropped)
    print(
        json.dumps(
            {
                "name": f"crop_rules_{arguments.dataset}",
                "value": plain,
                "unit": f"photographs of {len(tasks)} whose field of view disc fits",
                "baseline": sum(one.found_by["o_O"] == "o_O" for one in cropped),
                "ratio": round(plain / len(tasks), 4),
                "target": 1.0,
                "holds": bool(plain == len(tasks) and least > 0.98),
                "least_retina_kept": round(float(least), 4),
            }
        )
    )


if __name__ == "__main__":
    main()

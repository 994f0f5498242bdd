"""How the synthetic photographs differ from real ones: the tables and the figure of docs/demo.md.

    DRGRADE_IDRID_ROOT=... uv run python benchmarks/demo_realism.py [--images docs/images]

Painted: the demo at its default parameters and the second hospital. Real: IDRiD (Porwal et al., Data 3(3):25,
2018, CC-BY-4.0), as much as there is of it under DRGRADE_IDRID_ROOT: part A for lesions, parts A and B for
colours. Lesions are connected parts of the masks on both sides; sizes are relative to the optic disc.
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from drgrade.data.demo_site import DemoSite
from drgrade.data.eyepacs import EyePACS
from drgrade.data.hospital import Photograph, plan_patients, plan_segmentation
from drgrade.data.idrid import MASKS, PART_A, SETS, IDRiD
from drgrade.lesions.masks import read_mask
from drgrade.params import Demo, Download
from drgrade.report.plots import BAR, INK, SEED, figure
from drgrade.schema import GRADES, LESIONS
from drgrade.synthetic.painter import paint

SMALLEST = 0.002
"""Parts of a mask with a diameter below this share of the field's are specks."""
SIDE = 500
"""Colours and sharpness are measured at a field of view of this diameter in pixels."""
SECOND = "painted, second hospital"
COLOURS = {"painted": BAR, SECOND: "#c9c2e3", "real": SEED}
KINDS = dict(zip(LESIONS, ("#0e7490", SEED, "#a16207", "#a21caf"), strict=True))
MEASURES = {
    "disc": "Diameter relative to the optic disc's",
    "contrast": "Contrast of green with the ring around",
}
LOOKS = {"red": 0, "green": 0, "blue": 0, "sharpness": 3, "edge light": 2}
"""Measures of a whole image, and the digits to print."""


@dataclass(frozen=True)
class Measured:
    """Lesions and whole images of some photographs; ``masked`` are those whose lesions are known."""

    lesions: pd.DataFrame  # photograph, kind, and MEASURES as shares
    pictures: pd.DataFrame  # photograph, grade, and LOOKS
    masked: list[object]


def field_of_view(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask of the field, and its diameter in pixels: the median width of the middle rows."""
    bright = picture.max(axis=2) > 25
    rows = bright[int(0.45 * len(bright)) : int(0.55 * len(bright))]
    ends = [np.flatnonzero(row)[[0, -1]] for row in rows if row.any()]
    return bright, float(np.median([last - first + 1 for first, last in ends]))


def ring_contrast(green: np.ndarray, part: np.ndarray, lesions: np.ndarray, width: int) -> float:
    """Green of a lesion less that of a ring around it that is free of lesions, over the latter."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    gap = cv2.dilate(part.astype(np.uint8), kernel)
    ring = (cv2.dilate(gap, kernel) > gap) & ~lesions
    around = np.median(green[ring]) if ring.any() else np.nan
    return float((green[part].mean() - around) / around)


def lesion_rows(picture: np.ndarray, masks: dict[str, np.ndarray], disc: float) -> list[dict[str, object]]:
    """Kind, diameter (to the disc's, ``disc`` pixels) and contrast of each lesion of a photograph."""
    _, field = field_of_view(picture)
    union = np.any(list(masks.values()), axis=0)
    rows: list[dict[str, object]] = []
    for kind, mask in masks.items():
        count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        for n in range(1, count):
            x, y, width, height, area = boxes[n]
            diameter = 2 * np.sqrt(area / np.pi)
            if diameter < SMALLEST * field:
                continue
            gap = max(round(diameter / 4), 2)
            margin = 2 * gap + 2
            cut = np.s_[max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin]
            contrast = ring_contrast(picture[cut][..., 1], labels[cut] == n, union[cut], gap)
            rows.append({"kind": kind, "disc": diameter / disc, "contrast": contrast})
    return rows


def picture_row(picture: np.ndarray) -> dict[str, float]:
    """Mean red, green and blue of the field (0-255), relative sharpness, and light at the edge."""
    _, diameter = field_of_view(picture)
    small = cv2.resize(picture, None, fx=SIDE / diameter, fy=SIDE / diameter, interpolation=cv2.INTER_AREA)
    bright, _ = field_of_view(small)
    inside = cv2.erode(bright.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    green = small[..., 1].astype(np.float32)
    columns = np.flatnonzero(inside.any(axis=0))
    rows, across = np.mgrid[: small.shape[0], : small.shape[1]]
    reach = np.hypot(across - columns[[0, -1]].mean(), rows - (len(small) - 1) / 2) / (SIDE / 2)
    red, middle, blue = small[inside].mean(axis=0)
    edge = green[inside & (reach > 0.8) & (reach < 0.95)].mean() / green[inside & (reach < 0.5)].mean()
    sharpness = cv2.Laplacian(green, cv2.CV_32F)[inside & (reach < 0.9)].std() / middle
    return {
        "red": red,
        "green": middle,
        "blue": blue,
        "sharpness": float(sharpness),
        "edge light": float(edge),
    }


def developed(photograph: Photograph) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A synthetic photograph as its JPEG shows it, and its masks."""
    picture, masks = paint(photograph.eye)
    quality = [cv2.IMWRITE_JPEG_QUALITY, photograph.eye.camera.quality]
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], quality)[1]
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[..., ::-1], masks


def measure_painted(plan: list[Photograph]) -> Measured:
    """All of a painted plan: every lesion is known there."""
    lesions, pictures = [], []
    for photograph in plan:
        picture, masks = developed(photograph)
        half_width, half_height = photograph.eye.anatomy.disc_axes
        disc = 2 * np.sqrt(half_width * half_height) * photograph.eye.camera.radius
        about = {"photograph": photograph.path}
        lesions += [about | row for row in lesion_rows(picture, masks, disc)]
        pictures.append(about | {"grade": photograph.grade} | picture_row(picture))
    table = pd.DataFrame(pictures)
    return Measured(pd.DataFrame(lesions), table, list(table["photograph"]))


def measure_real(root: Path) -> Measured:
    """Lesions of IDRiD part A; images, at a quarter of their size, of both parts."""
    reader, lesions, pictures, masked = IDRiD(), [], [], []
    for row in reader.read(root).dropna(subset=["path"]).itertuples():
        file, paths = root / row.path, reader.masks(root, row.image_id)
        about = {"photograph": row.image_id}
        quarter = np.asarray(cv2.imread(str(file), cv2.IMREAD_REDUCED_COLOR_4))[..., ::-1]
        pictures.append(about | {"grade": row.grade} | picture_row(quarter))
        if paths:
            whole = np.asarray(cv2.imread(str(file)))[..., ::-1]
            masks = {kind: read_mask(path) for kind, path in paths.items()}
            discs = root / PART_A / MASKS / SETS[row.official_split] / "5. Optic Disc"
            disc = 2 * np.sqrt(read_mask(discs / f"{file.stem}_OD.tif").sum() / np.pi)
            lesions += [about | found for found in lesion_rows(whole, masks, disc)]
            masked.append(row.image_id)
    return Measured(pd.DataFrame(lesions), pd.DataFrame(pictures), masked)


def spread(values: pd.Series, digits: int = 2) -> str:
    """Median and the middle 80 %."""
    low, middle, high = np.nanquantile(values.astype(float), [0.1, 0.5, 0.9])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def counts(found: Measured, kind: str) -> pd.Series:
    """Lesions of a kind on each photograph, none included."""
    listed = found.lesions.loc[found.lesions["kind"] == kind, "photograph"].value_counts()
    return listed.reindex(found.masked, fill_value=0)


def print_lesions(sides: dict[str, Measured]) -> None:
    """Number, size and contrast of lesions, painted beside real."""
    head = [f"{name}, {len(side.masked)} photographs" for name, side in sides.items()]
    rows = [[kind, *(spread(counts(side, kind), 0) for side in sides.values())] for kind in LESIONS]
    table("Lesions per photograph with masks, median (10 to 90 %)", ["kind", *head], rows)
    head = [f"{name}, {len(side.lesions)} lesions" for name, side in sides.items()]
    for column, title in MEASURES.items():
        rows = [
            [k, *(spread(100 * s.lesions.loc[s.lesions["kind"] == k, column], 1) for s in sides.values())]
            for k in LESIONS
        ]
        table(f"{title}, in %, median (10 to 90 %)", ["kind", *head], rows)


def print_grades(graded: Measured) -> None:
    """Lesions per synthetic photograph by grade."""
    rows = []
    for grade in GRADES:
        own = list(graded.pictures.loc[graded.pictures["grade"] == grade, "photograph"])
        part = replace(graded, masked=own)
        rows.append([str(grade), str(len(own)), *(spread(counts(part, kind), 0) for kind in LESIONS)])
    table(
        "Lesions per painted photograph by grade, median (10 to 90 %)",
        ["grade", "photographs", *LESIONS],
        rows,
    )


def print_shares(graded: Measured) -> None:
    """Grades of the synthetic dataset beside those that real ones publish."""
    painted = [int((graded.pictures["grade"] == grade).sum()) for grade in GRADES]
    rows = []
    for name, numbers in (
        ("painted", painted),
        ("IDRiD, part B, training", IDRiD.card.counts["train"].grades),
        ("EyePACS, training", EyePACS.card.counts["train"].grades),
    ):
        if numbers:
            rows.append([name, str(sum(numbers)), *(f"{100 * n / sum(numbers):.0f}" for n in numbers)])
    table("Share of each grade in %", ["", "photographs", *map(str, GRADES)], rows)


def print_pictures(sides: dict[str, Measured]) -> None:
    """Colours, sharpness and light of whole images."""
    rows = [
        [f"{name} ({len(side.pictures)})", *(spread(side.pictures[c], d) for c, d in LOOKS.items())]
        for name, side in sides.items()
    ]
    table("Images, median (10 to 90 %)", ["", *LOOKS], rows)


def print_settings(params: Demo) -> None:
    """Contrast of the painted lesions at other settings."""
    rows = []
    for contrast in (0.1, 0.2, 0.5, 1.0, 2.0):
        plan = plan_segmentation(params.model_copy(update={"lesion_contrast": contrast}))
        lesions = measure_painted(plan).lesions
        by_kind = [100 * lesions.loc[lesions["kind"] == kind, "contrast"] for kind in LESIONS]
        rows.append([str(contrast), *(spread(values, 1) for values in by_kind)])
    table("Contrast in % by lesion_contrast, median (10 to 90 %)", ["lesion_contrast", *LESIONS], rows)


def boxes(axes: Axes, groups: dict[str, list[np.ndarray]], labels: list[str]) -> None:
    """Boxes of several groups side by side at each label: middle half, whiskers at 10 and 90 %."""
    width = 0.8 / len(groups)
    for n, (name, values) in enumerate(groups.items()):
        places = np.arange(len(labels)) + (n - (len(groups) - 1) / 2) * width
        clean = [some[~np.isnan(some)] for some in values]
        drawn = axes.boxplot(
            clean, positions=places, widths=0.85 * width, whis=(10, 90),
            showfliers=False, patch_artist=True, manage_ticks=False,
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set(facecolor=COLOURS[name], edgecolor=INK, linewidth=0.7)
        for part in ("medians", "whiskers", "caps"):
            for line in drawn[part]:
                line.set(color=INK, linewidth=0.9)
    axes.set_xticks(range(len(labels)), labels)


def draw(sides: dict[str, Measured], pictures: dict[str, Measured], graded: Measured, path: Path) -> None:
    """The tables as one figure: lesions (number, size, contrast), colours, sharpness, lesions by grade."""
    with figure(path, 11, 6.4) as drawn:
        axes = drawn.subplots(2, 3).ravel()
        number = {n: [counts(s, k).to_numpy(float) for k in LESIONS] for n, s in sides.items()}
        boxes(axes[0], number, list(LESIONS))
        axes[0].set(title="Lesions per photograph with masks", yscale="symlog", ylim=(-0.2, 500))
        axes[0].set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        for ax, (column, title) in zip(axes[1:3], MEASURES.items(), strict=True):
            parts = {
                n: [100 * s.lesions.loc[s.lesions["kind"] == k, column].to_numpy(float) for k in LESIONS]
                for n, s in sides.items()
            }
            boxes(ax, parts, list(LESIONS))
            ax.set_title(f"{title}, %")
        channels = ["red", "green", "blue"]
        boxes(
            axes[3], {n: [s.pictures[c].to_numpy() for c in channels] for n, s in pictures.items()}, channels
        )
        axes[3].set_title("Mean colour of the field, 0-255")
        other = ["sharpness", "edge light"]
        scale = {"sharpness": 10, "edge light": 1}
        boxes(axes[4], {n: [scale[c] * s.pictures[c].to_numpy() for c in other] for n, s in pictures.items()},
              ["sharpness x 10", "light at the edge"])  # fmt: skip
        axes[4].set_title("Whole pictures")
        for kind in LESIONS:
            means = [
                counts(replace(graded, masked=list(own["photograph"])), kind).mean()
                for _, own in graded.pictures.groupby("grade")
            ]
            axes[5].plot(list(GRADES), means, "o-", label=kind, color=KINDS[kind])
        axes[5].set(title="Painted: mean number of lesions by grade", xticks=list(GRADES))
        axes[5].legend(frameon=False)
        patches = [Patch(facecolor=colour, edgecolor=INK) for colour in COLOURS.values()]
        drawn.legend(patches, list(COLOURS), loc="outside lower center", ncols=3, frameon=False)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder for demo_distributions.png")
    options = parser.parse_args()
    root = os.environ.get("DRGRADE_IDRID_ROOT")
    if not root:
        sys.exit("demo_realism: no real photographs: set DRGRADE_IDRID_ROOT to a folder in IDRiD's layout")
    params = Download(demo=Demo(patients=60))  # more than the demo's 50, for steadier tables
    teaching = measure_painted(plan_segmentation(params.demo))
    graded = measure_painted(plan_patients(params.demo))
    site = measure_painted(plan_patients(params.demo_site, DemoSite.first))
    real = measure_real(Path(root))
    sides, pictures = {"painted": teaching, "real": real}, {"painted": graded, SECOND: site, "real": real}
    print_lesions(sides)
    print_grades(graded)
    print_shares(graded)
    print_pictures(pictures)
    print_settings(params.demo)
    if options.images:
        draw(sides, pictures, graded, options.images / "demo_distributions.png")


if __name__ == "__main__":
    main()

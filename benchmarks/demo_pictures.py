"""Draw the images of docs/demo.md: painted beside real photographs by grade, and the difficulty settings.

    DRGRADE_IDRID_ROOT=... uv run python benchmarks/demo_pictures.py [--images docs/images]

Real photographs are IDRiD's (Porwal et al., Data 3(3):25, 2018, CC-BY-4.0), cropped and reduced. On both
sides the first photographs of each grade are taken, in the order of the plan and of the label file.
"""

import argparse
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drgrade.data.hospital import plan_patients
from drgrade.data.idrid import IDRiD
from drgrade.files import write_file
from drgrade.params import Demo
from drgrade.report.plots import STYLE
from drgrade.schema import GRADES
from drgrade.synthetic.painter import Eye, paint

SIDE = 300
"""Of a tile, in pixels."""
NUMBER = 2
"""Photographs of each grade, painted and real."""
SETTINGS = {
    "lesion_contrast 1\ncamera_shift 0": (1.0, 0.0),
    "lesion_contrast 0.5": (0.5, 0.0),
    "lesion_contrast 0.2": (0.2, 0.0),
    "camera_shift 0.5": (1.0, 0.5),
    "camera_shift 1": (1.0, 1.0),
}
"""Contrast and shift of a column."""
Tiles = dict[str, list[np.ndarray]]
"""Columns by name, each a list of (side, side, 3) uint8 RGB."""


def tile(picture: np.ndarray, x: float, y: float, half: float) -> np.ndarray:
    """The square of half side ``half`` about (x, y), reduced; black where it reaches outside."""
    factor = max(int(half / SIDE), 1)
    small = cv2.resize(picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    zoom = SIDE * factor / (2 * half)
    move = np.array([[zoom, 0, SIDE / 2 - zoom * x / factor], [0, zoom, SIDE / 2 - zoom * y / factor]])
    return np.asarray(cv2.warpAffine(small, move, (SIDE, SIDE), flags=cv2.INTER_LINEAR))


def painted_tile(eye: Eye, whole: bool = False) -> np.ndarray:
    """A synthetic photograph as its JPEG shows it, cut to the field, or the whole image."""
    camera = eye.camera
    jpeg = cv2.imencode(".jpg", paint(eye)[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.quality])[1]
    picture = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[..., ::-1]
    if whole:
        return tile(picture, camera.width / 2, camera.height / 2, max(camera.width, camera.height) / 2)
    x, y = camera.centre
    return tile(picture, x, y, camera.radius * camera.reach)


def real_tiles(root: Path, grade: int) -> Iterator[np.ndarray]:
    """Photographs of IDRiD part B with this grade, cut to the width of the field."""
    table = IDRiD().read(root).dropna(subset=["path", "grade"])
    for path in table.loc[table["grade"] == grade, "path"]:
        picture = np.asarray(cv2.imread(str(root / path), cv2.IMREAD_REDUCED_COLOR_4))[..., ::-1]
        columns = np.flatnonzero((picture.max(axis=2) > 25).mean(axis=0) > 0.02)
        first, last = float(columns[0]), float(columns[-1])
        yield tile(picture, (first + last) / 2, len(picture) / 2, (last - first) / 2)


def montage(columns: Tiles, rows: list[str], path: Path) -> None:
    """Write a JPEG of the tiles with a title to each column and a name to each row."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(2.1 * len(columns), 2.1 * len(rows) + 0.3), layout="constrained")
        canvas = FigureCanvasAgg(drawn)
        grid = drawn.subplots(len(rows), len(columns), squeeze=False)
        for column, (title, pictures) in zip(grid.T, columns.items(), strict=True):
            column[0].set_title(title)
            for axes, picture in zip(column, pictures, strict=True):
                axes.imshow(picture)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        for axes, name in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(name)
        buffer = io.BytesIO()
        canvas.print_jpg(buffer, pil_kwargs={"quality": 88})
    write_file(path, buffer.getvalue())


def main() -> None:
    """Paint, read, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the pictures")
    options = parser.parse_args()
    root = os.environ.get("DRGRADE_IDRID_ROOT")
    if not root:
        sys.exit("demo_pictures: no real photographs: set DRGRADE_IDRID_ROOT to a folder in IDRiD's layout")
    plan = plan_patients(Demo())
    columns: Tiles = {}
    for grade in GRADES:
        real = real_tiles(Path(root), grade)
        eyes = [photograph.eye for photograph in plan if photograph.grade == grade]
        columns[f"grade {grade}"] = [painted_tile(eye) for eye in eyes[:NUMBER]]
        columns[f"grade {grade}"] += [next(real) for _ in range(NUMBER)]
    montage(columns, ["painted"] * NUMBER + ["real (IDRiD)"] * NUMBER, options.images / "demo_vs_real.jpg")
    shown = [next(p.eye for p in plan if p.grade == grade) for grade in (2, 4)]
    columns = {
        title: [
            painted_tile(replace(eye, lesion_contrast=contrast, camera=eye.camera.shifted(shift)), whole=True)
            for eye in shown
        ]
        for title, (contrast, shift) in SETTINGS.items()
    }
    montage(columns, ["grade 2", "grade 4"], options.images / "demo_settings.jpg")


if __name__ == "__main__":
    main()

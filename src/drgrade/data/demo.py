"""The synthetic dataset: graded pairs of eyes in the layout of EyePACS, lesion masks in that of IDRiD.

The files depend on ``download.demo`` in the parameters only, not on the number of processes.
"""

import csv
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from drgrade.data.eyepacs import EyePACS
from drgrade.data.hospital import (
    GRADED_MASKS,
    Photograph,
    plan_graded,
    plan_patients,
    plan_segmentation,
    with_masks,
)
from drgrade.data.idrid import LABEL_COLUMNS, LABEL_FILES, LABELS, PART_B, SETS, IDRiD
from drgrade.data.registry import DATASETS, Card
from drgrade.errors import UserError
from drgrade.files import write_file
from drgrade.images.workers import in_order
from drgrade.params import Demo as DemoParams
from drgrade.params import Download
from drgrade.schema import LESIONS
from drgrade.synthetic.painter import Eye, paint

log = logging.getLogger(__name__)

PAINTER = 1
"""Version of the painter: increase it when the same parameters give other pixels, to repaint old images."""
STAMP = "painted.json"


def _painted(root: Path, photograph: Photograph) -> bool:
    return all((root / path).exists() for path in (photograph.path, *photograph.masks.values()))


def _paint_file(root: Path, photograph: Photograph) -> None:
    """Paint one image and its masks, each file atomically."""
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    image, masks = paint(photograph.eye)
    for code, path in photograph.masks.items():
        mask = Image.fromarray(masks[code].astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, 255, 0, 0])  # lesions red, as in IDRiD
        buffer = io.BytesIO()
        mask.save(buffer, "TIFF", compression="tiff_lzw")
        write_file(root / path, buffer.getvalue())
    quality = [cv2.IMWRITE_JPEG_QUALITY, photograph.eye.camera.quality]
    write_file(root / photograph.path, cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes())


def _write_csv(path: Path, rows: Sequence[Sequence[object]], end: str = "\n") -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    write_file(path, text.getvalue().encode())


def _oedema_risk(eye: Eye) -> int:
    """Macular oedema risk as in IDRiD: no hard exudates 0, far 1, within a disc diameter of the fovea 2."""
    distances = [np.hypot(lesion.x, lesion.y) for lesion in eye.lesions if lesion.kind == "EX"]
    return 0 if not distances else 2 if min(distances) <= 2 * eye.anatomy.disc_axes[1] else 1


def _write_labels(root: Path, patients: list[Photograph], graded: list[Photograph]) -> None:
    """Write the label files of EyePACS and IDRiD part B, with their empty columns and line endings."""
    named = [(PurePosixPath(p.path), p.label) for p in patients]
    train = [[path.stem, label] for path, label in named if path.parts[1] == "train"]
    test = [[path.stem, label] for path, label in named if path.parts[1] == "test"]
    # Both eyes of a patient stay together: every second test patient is in the public (validation) part.
    usage = [[*row, ("Public", "Private")[n // 2 % 2]] for n, row in enumerate(test)]
    _write_csv(root / "eyepacs" / "trainLabels.csv", [["image", "level"], *train])
    _write_csv(root / "eyepacs" / "retinopathy_solution.csv", [["image", "level", "Usage"], *usage])
    for split, folder in SETS.items() if graded else ():
        rows: list[list[object]] = [[*LABEL_COLUMNS, *[""] * 9]]
        for photograph in graded:
            path = PurePosixPath(photograph.path)
            if path.parent.name == folder:
                rows.append([path.stem, photograph.label, _oedema_risk(photograph.eye), *[""] * 9])
        _write_csv(root / "idrid" / PART_B / LABELS / LABEL_FILES[split], rows, "\r\n")


def _clear(root: Path, stamp: str, variable: str) -> None:
    """Remove files that were painted with other parameters.

    Raises:
        UserError: there are files that this module has not painted.
    """
    file = root / STAMP
    if file.exists() and file.read_text() == stamp:
        return
    for folder in (root / "eyepacs", root / "idrid", root / GRADED_MASKS):
        if folder.exists() and not file.exists():
            raise UserError(f"{folder}: not painted by drgrade; move it away or set {variable} elsewhere")
        if folder.exists():
            shutil.rmtree(folder)
    write_file(file, stamp.encode())


@DATASETS.register("demo")
class Demo:
    """Synthetic photographs in the layouts of EyePACS (``eyepacs/``) and IDRiD (``idrid/``).

    A further synthetic hospital is a subclass with its own ``card``, ``first`` and :meth:`settings`.
    """

    card = Card(
        name="demo",
        title="Synthetic fundus photographs",
        version=str(PAINTER),
        licence="Apache-2.0",
        source="painted by drgrade",
        access="synthetic",
        citation="-",
        instructions="nothing to do: drgrade download paints them into {root}",
        defects=(
            "Lesions are larger and easier to see than real ones; `docs/demo.md` compares them.",
            "Grades follow from the painted lesions by rule, while readers of real photographs disagree.",
        ),
    )
    first = 0
    """Patients and photographs are numbered from about this number."""
    parts = (("eyepacs", EyePACS), ("idrid", IDRiD))

    def settings(self, params: Download) -> DemoParams:
        """Return this hospital's block of the parameters."""
        return params.demo

    def download(self, root: Path, params: Download) -> None:
        """Paint missing images, replace those of other parameters, and rewrite the label files."""
        settings = self.settings(params)
        # Label noise does not change the images.
        stamp = {"painter": PAINTER, **settings.model_dump(exclude={"label_noise"})}
        _clear(root, json.dumps(stamp, sort_keys=True) + "\n", f"DRGRADE_{self.card.name.upper()}_ROOT")
        patients, graded = plan_patients(settings, self.first), plan_graded(settings, self.first)
        plan = [*patients, *plan_segmentation(settings, self.first), *graded]
        if settings.masks == "all":
            plan = list(map(with_masks, plan))
        missing = [photograph for photograph in plan if not _painted(root, photograph)]
        if missing:
            workers = min(len(os.sched_getaffinity(0)), 16)
            list(in_order(partial(_paint_file, root), missing, workers))
        _write_labels(root, patients, graded)
        log.info("%s: %d photographs, %d of them painted now", root, len(plan), len(missing))

    def read(self, root: Path) -> pd.DataFrame:
        """Return the rows of both layouts, or of the one that was painted; see :class:`Dataset`."""
        tables = []
        for name, part in self.parts:
            if name == "idrid" and not (root / name).exists():
                continue
            table = part().read(root / name)
            table["path"] = [f"{name}/{path}" if isinstance(path, str) else None for path in table["path"]]
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def masks(self, root: Path, image_id: str) -> dict[str, Path]:
        """Return the exact masks of a photograph by lesion code; an empty dict if it has none."""
        others = {code: root / GRADED_MASKS / f"{image_id}_{code}.tif" for code in LESIONS}
        others = {code: path for code, path in others.items() if path.exists()}
        return IDRiD().masks(root / "idrid", image_id) or others

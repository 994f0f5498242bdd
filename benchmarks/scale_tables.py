"""Synthetic tables of any number of photographs, without photographs, for benchmarks/scale.py."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from splits import make_table  # benchmarks/splits.py, which lies beside this file

from drgrade.data.listing import HEADER
from drgrade.files import write_json
from drgrade.images.shards import shard_path, shard_rows
from drgrade.lesions.found import PARTS
from drgrade.lesions.predict import PART
from drgrade.schema import CROPS, LESIONS, conform, write_table

WIDTH, HEIGHT, SIZE = 4752, 3168, 512
"""Of a photograph, and the side of a crop, in pixels."""
BOXES = 20
"""Lesions that the detector finds in a photograph."""


def write_survey(folder: Path, count: int) -> None:
    """What the reader and the look at each photograph give, and the manifest of the raw files."""
    table = make_table(count).drop(columns="status")
    table = table.sort_values("image_id", ignore_index=True)
    table["path"] = "train/" + table["image_id"] + ".jpeg"
    table["eye"] = table["image_id"].str.extract("_(left|right)$", expand=False)
    table = table.assign(quality_label=pd.NA, width=WIDTH, height=HEIGHT, retina=True, unreadable="")
    measures = ("fov", "sharpness", "exposure", "contrast", "quality")
    table = table.assign(**dict.fromkeys(measures, 0.9))
    table.astype({"path": "string", "quality_label": "string"}).to_parquet(folder / "survey.parquet")
    lines = (table["path"] + "\t1000000\t" + table["sha256"]).tolist()
    (folder / "manifest.tsv").write_text("\n".join([HEADER, *lines, ""]))


def write_crops(folder: Path, index: pd.DataFrame) -> None:
    """``crops.parquet`` and a raw store whose shards take no space: files with holes in place of pixels."""
    table = index[["image_id"]].assign(row=range(len(index)), x0=800, y0=0, x1=3968, y1=3168)
    table = table.assign(scale=SIZE / HEIGHT, rule="disc", status="ok", reason="")
    write_table(table, folder / "crops.parquet", CROPS)
    (folder / "store").mkdir(exist_ok=True)
    shards = []
    for number, rows in enumerate(shard_rows(len(index), SIZE, "raw")):
        path = shard_path(folder / "store", number, "raw")
        shape = rows, SIZE, SIZE, 3
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)))
        about = {"name": path.name, "bytes": path.stat().st_size, "sha256": f"{number:064x}"}
        shards.append({"rows": rows, "files": [about]})
    about = {"format": "raw", "quality": None, "size": SIZE, "count": len(index), "shards": shards}
    write_json(about, folder / "store.json")


def detections(image_ids: list[str], seed: int) -> pd.DataFrame:
    """BOXES lesions of each photograph, in original pixels, inside the crop and small enough for a patch."""
    rng = np.random.default_rng(seed)
    number = BOXES * len(image_ids)
    x, y = rng.uniform(900, 3400, number), rng.uniform(100, 2600, number)
    width, height = rng.uniform(20, 400, (2, number))
    columns = {"x1": x, "y1": y, "x2": x + width, "y2": y + height, "score": rng.uniform(0.8, 1, number)}
    table = pd.DataFrame({"image_id": np.repeat(np.array(image_ids, dtype=object), BOXES), **columns})
    return conform(table.assign(lesion=rng.choice(LESIONS, number), reason=pd.NA), PARTS)


def write_parts(folder: Path, image_ids: list[str]) -> None:
    """What the jobs of the lesion search write: a file for each PART photographs."""
    folder.mkdir()
    for start in range(0, len(image_ids), 200 * PART):
        found = pa.Table.from_pandas(detections(image_ids[start : start + 200 * PART], start))
        for first in range(0, found.num_rows, PART * BOXES):
            path = folder / f"{start + first // BOXES:07d}.parquet"
            pq.write_table(found.slice(first, PART * BOXES), path)


def probabilities(grades: np.ndarray) -> np.ndarray:
    """Probabilities (N, 5) of a mediocre grader, all different."""
    noise = np.random.default_rng(0).normal(size=(len(grades), 5))
    likely = np.exp(2 * np.eye(5)[grades] + noise)
    return likely / likely.sum(axis=1, keepdims=True)

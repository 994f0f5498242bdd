"""The steps of benchmarks/scale.py: what each stage does with its whole table.

A step takes the folder of the tables, imports and reads what its stage does, and returns the work to measure.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scale_tables import SIZE, probabilities, write_crops, write_parts, write_survey

from drgrade import params
from drgrade.params import Evaluate, Index, Roles
from drgrade.schema import INDEX, PREDICTIONS, read_table, write_table

OFFICIAL = Index(val_fraction=0.123, test_fraction=0.481)
"""Shares of EyePACS's public and private test parts."""
DATASET = "eyepacs"
PRESET = "eyepacs-lesion_contrastive"
ROOT = Path(__file__).parents[1]
Work = Callable[[], Any]


def index_of(folder: Path) -> pd.DataFrame:
    """The index as the next stages read it."""
    return read_table(folder / "index/index.parquet", INDEX)


def index(folder: Path) -> Work:
    """Join labels and looks, find near duplicates, split by patient, write index and split."""
    from drgrade.data.index import assemble
    from drgrade.data.registry import READ_COLUMNS
    from drgrade.images.survey import Survey
    from drgrade.splits.files import write_split

    survey = pd.read_parquet(folder / "survey.parquet").rename(columns={"unreadable": "reason"})
    looks = [Survey(*row) for row in survey[list(Survey._fields)].itertuples(index=False)]
    read = survey[[*READ_COLUMNS, "sha256"]]

    def work() -> None:
        table = assemble(read, looks, OFFICIAL)
        write_table(table, folder / "index/index.parquet", INDEX)
        write_split(table, folder / "split.csv", OFFICIAL, folder / "index/index.parquet")

    return work


def folds(folder: Path) -> Work:
    """Divide into five folds for cross-validation."""
    from drgrade.splits.assign import assign_splits

    table = index_of(folder).assign(official_split=pd.Series(pd.NA, dtype="string"))
    return lambda: assign_splits(table, Index(scheme="kfold"))


def overlaps(folder: Path) -> Work:
    """Compare names, bytes and perceptual hashes of all photographs."""
    from drgrade.splits.overlaps import overlaps

    roles = Roles(lesions=DATASET, pretrain=DATASET, grade=DATASET)
    return lambda: overlaps({DATASET: folder / "index/index.parquet"}, roles, 10, folder, refuse=())


def crop(folder: Path) -> Work:
    """Plan the shards, read ``crops.parquet`` and the manifest, open every shard with 1,024 file handles."""
    from drgrade.images.stage import plan
    from drgrade.images.store import Crops

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        shards = plan(index_of(folder), folder, params.Crop(size=SIZE)).shards
        crops = Crops(folder / "crop/store.json", folder / "crop/crops.parquet")
        for first in np.cumsum([0, *shards[:-1]]):
            crops.pictures.picture(int(first))

    return work


def lesions(folder: Path) -> Work:
    """Join the parts of the lesion search."""
    from drgrade.lesions.predict import _collect

    rows = index_of(folder)[["image_id", "path"]].sort_values("image_id", ignore_index=True)
    parts = sorted((folder / "parts").iterdir())
    return lambda: _collect(parts, rows, folder, folder / "lesions.parquet")


def patches(folder: Path) -> Work:
    """Choose boxes for pretraining, write ``patches.pkl`` in the field's format."""
    from drgrade.lesions.choose import make_patches

    out = (folder / "patches.pkl", folder / "boxes.parquet", folder / "patches.json")
    index, crops = folder / "index/index.parquet", folder / "crop/crops.parquet"
    chosen, masks = params.Patches(size=128, min_score=0.8), params.LesionBoxes()
    return lambda: make_patches(
        DATASET, index, crops, SIZE, folder / "lesions.parquet", masks, "detector", chosen, *out
    )


def pretrain(folder: Path) -> Work:
    """Read the patches, draw the lesions of an epoch, compute the key of the training."""
    from drgrade.images.dataset import CroppedDataset
    from drgrade.pretrain.base import METHODS, Material
    from drgrade.pretrain.contrastive import projector
    from drgrade.pretrain.lesion_contrastive import LesionPairs
    from drgrade.pretrain.stage import training_rows, with_boxes
    from drgrade.resume import training_key

    block = params.LesionContrastive(encoder="test_resnet", start="random").model_dump()
    data = CroppedDataset(DATASET, folder)
    learner, network = METHODS.get("lesion_contrastive")(block), projector(block)

    def work() -> None:
        table = with_boxes(training_rows(data), learner, folder / "patches.pkl", None)
        material = Material(data.images, table["row"].to_numpy(np.int64), list(table["boxes"]), 128)
        LesionPairs(network, material, block).samples(0)
        training_key("pretrain", "drgrade.pretrain.lesion_contrastive", block, photographs={"train": table},
                     files=[folder / "patches.pkl"])  # fmt: skip

    return work


def grade(folder: Path) -> Work:
    """Select a tenth of the labels, draw an epoch, compute the key of the training, write predictions."""
    from drgrade.evaluate.metrics import to_grades
    from drgrade.grading.photographs import parts_of
    from drgrade.grading.sampling import order, sampling_weights
    from drgrade.images.dataset import CroppedDataset
    from drgrade.resume import training_key

    def predicted(rows: pd.DataFrame, split: str) -> pd.DataFrame:
        shares = probabilities(rows["grade"].to_numpy(np.int64))
        score = shares @ np.arange(5)
        filled = {f"p{k}": shares[:, k] for k in range(5)} | {"score": score, "predicted": to_grades(score)}
        told = {"dataset": DATASET, "split": split, "experiment": "tenth", "seed": 0, "fold": pd.NA}
        return rows[["image_id", "patient_id", "eye", "grade"]].assign(**filled, **told)

    def work() -> None:
        table = CroppedDataset(DATASET, folder).graded()
        parts = parts_of(table, seed=0, fold=None, select="best", label_fraction=0.1)
        grades = parts["train"]["grade"].to_numpy(np.int64)
        order(grades, sampling_weights(params.Sampling(strategy="class"), np.bincount(grades), 0), 0, 0)
        training_key("grade", "drgrade.grading.finetune", {}, photographs=parts)
        rows = pd.concat([predicted(parts[split], split) for split in ("val", "test")])
        write_table(rows, folder / "predictions.parquet", PREDICTIONS)

    return work


def boxes(folder: Path) -> Work:
    """Bring the detector's boxes into the crops, for graders that look at them."""
    from drgrade.grading.stage import boxes_in_crops
    from drgrade.images.dataset import CroppedDataset

    return lambda: boxes_in_crops(CroppedDataset(DATASET, folder), folder / "lesions.parquet")


def calibrate(folder: Path) -> Work:
    """Fit thresholds, calibration, operating points and sets of grades for one experiment, one seed."""
    from drgrade.evaluate.calibrate import calibrate

    return lambda: calibrate([folder / "predictions.parquet"], params.Calibrate(), folder)


def evaluate(folder: Path) -> Work:
    """Measure one experiment, one seed, with 2,000 resamples; leaderboard, figures, subgroups."""
    from drgrade.evaluate.leaderboard import evaluate
    from drgrade.evaluate.subgroups import write_subgroups
    from drgrade.images.dataset import CroppedDataset

    data, paths = CroppedDataset(DATASET, folder), [folder / "predictions.parquet"]

    def work() -> None:
        evaluate(paths, data.graded(), folder / "calibration.json", Evaluate(), folder / "evaluate")
        write_subgroups(paths, {DATASET: data.index}, Evaluate(), folder / "subgroups.csv")

    return work


def jobs(folder: Path) -> Work:
    """Plan the published protocol with Snakemake where an index of that many rows is there."""
    project = folder / "project"
    for name in ("Snakefile", "workflow", "params", "profiles", "params.yaml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / name, project / name)
    weights = project / "data/weights/resnet50.tv_in1k.safetensors"
    made = {"manifest.tsv": f"{DATASET}/download", "index/index.parquet": f"{DATASET}/index"}
    made |= {f"split.{kind}": "splits" for kind in ("csv", "json")}
    for name, place in made.items():
        stem = f"{DATASET}{Path(name).suffix}" if place == "splits" else Path(name).name
        (project / "results" / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, project / "results" / place / stem)
    weights.parent.mkdir(parents=True)
    weights.touch()
    command = ["snakemake", "--cores", "8", "--quiet", "rules", "--configfile", f"params/{PRESET}.yaml"]

    def snakemake(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=project, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout

    snakemake("--touch", "--", f"results/{DATASET}/index/index.parquet")
    return lambda: int(snakemake("--dry-run").split("total")[1].split()[0])


STEPS: dict[str, Callable[[Path], Work]] = {
    "index": index, "folds": folds, "overlaps": overlaps, "crop": crop, "lesions": lesions,
    "patches": patches, "pretrain": pretrain, "grade": grade, "boxes": boxes, "calibrate": calibrate,
    "evaluate": evaluate, "jobs": jobs,
}  # fmt: skip
"""In the order of the pipeline; a step reads what those before it wrote."""


def prepare(step: str, folder: Path, count: int) -> None:
    """Write the input of a step that no step before it writes."""
    if step == "index":
        write_survey(folder, count)
    elif step == "crop":
        (folder / "crop").mkdir()
        write_crops(folder / "crop", index_of(folder))
    elif step == "lesions":
        write_parts(folder / "parts", index_of(folder)["image_id"].sort_values().tolist())

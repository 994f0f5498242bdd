"""Build ``index.parquet``: a dataset's photographs with labels, status and split."""

import logging
import shutil
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.data.listing import UNREADABLE, raw_root, read_manifest, state
from drgrade.data.patients import UNKNOWN, patients_by_number, unknown
from drgrade.data.registry import DATASETS
from drgrade.errors import UserError
from drgrade.images.survey import Survey, survey_parts
from drgrade.params import Index
from drgrade.parts import SINGLE_JOB, parts_folder
from drgrade.schema import INDEX, write_table
from drgrade.sources import software
from drgrade.splits.assign import assign_splits, limit_patients
from drgrade.splits.files import write_split
from drgrade.splits.lists import read_lines

log = logging.getLogger(__name__)

ODD_NAME = "its name is not UTF-8, or has a line break or another control character; rename the file"
"""Reason of a file that cannot be read because its name had to be escaped."""


def _limited(table: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """Keep the patients of ``limit`` graded photographs, and the whole segmentation subset."""
    graded = table[(table["subset"] == "grading") & table["grade"].notna() & table["path"].notna()]
    if len(graded) <= limit:
        return table
    patients = limit_patients(graded, limit, seed)
    if not patients:
        raise UserError(f"limit: {limit} is less than the photographs of any one patient; raise it")
    kept = table[table["patient_id"].isin(patients) | (table["subset"] != "grading")]
    log.info("limit %d: %d of %d patients kept", limit, len(patients), graded["patient_id"].nunique())
    return kept.reset_index(drop=True)


def _excluded(path: Path | None, dataset: str, known: set[str]) -> set[str]:
    """Read the image ids to exclude from a CSV with a column image_id and, optionally, a column dataset.

    Ids that are not ``known`` have no effect and are logged.

    Raises:
        UserError: the file or the column is missing.
    """
    if path is None:
        return set()
    lines = [line for _, line in read_lines(path, "datasets.<name>.exclude")]
    if lines and "image_id" not in lines[0]:
        raise UserError(f"{path}: line 1: no column 'image_id'; add it")
    listed = {line["image_id"] for line in lines if line.get("dataset", dataset) == dataset}
    if unknown := sorted(listed - known):
        told = path, len(unknown), len(listed), dataset, unknown[0]
        log.warning("%s: %d of %d image_ids are not in %s, such as %s", *told)
    return listed & known


def digests(root: Path, paths: pd.Series, listed: dict[str, tuple[int, str]]) -> list[str | None]:
    """SHA-256 of each photograph from the manifest; None for unreadable files.

    Raises:
        UserError: a file differs from its entry in the manifest.
    """
    found = []
    for path in paths:
        size, digest = listed.get(path, (None, None)) if isinstance(path, str) else (None, None)
        if digest == UNREADABLE:
            digest = None
        elif isinstance(path, str) and (size is None or state(root / path).size != size):
            raise UserError(
                f"{root / path}: not as in the manifest; "
                "delete results/<dataset>/download/manifest.tsv and run again"
            )
        found.append(digest)
    return found


def _state(row: Any, params: Index, excluded: Set[str]) -> tuple[str, str]:
    """Status and reason of one row."""
    rejected = row.quality_label == "reject" if isinstance(row.quality_label, str) else False
    if not isinstance(row.path, str):
        return "missing", "label without a photograph"
    if row.unreadable:
        return "unreadable", ODD_NAME if "\\" in row.path and pd.isna(row.sha256) else row.unreadable
    if row.image_id in excluded:
        return "filtered", "excluded by datasets.<name>.exclude"
    if params.drop_rejected and rejected:
        return "filtered", "ungradable, says the dataset (index.drop_rejected)"
    if row.quality < params.min_quality:
        return "filtered", f"quality {row.quality:.2f} is below index.min_quality {params.min_quality:g}"
    if pd.isna(row.grade) and row.subset == "grading":
        return "unlabelled", "ungradable, says the dataset" if rejected else "no label"
    return "ok", ""


def assemble(
    table: pd.DataFrame,
    looks: Sequence[Survey],
    params: Index,
    *,
    excluded: Set[str] = frozenset(),
    split_file: Path | None = None,
) -> pd.DataFrame:
    """Build the index from the rows of a dataset's reader and the survey of each photograph.

    Args:
        table: columns READ_COLUMNS and sha256, one row for each photograph and each label.
        looks: one survey for each row; an empty one if there is no photograph.
        params: the block ``index``.
        excluded: image ids that are not used.
        split_file: the CSV of the scheme ``file``.

    Returns:
        The columns of ``drgrade.schema.INDEX`` and more, in the order of ``table``.

    Raises:
        UserError: the split is impossible.
    """
    seen = pd.DataFrame(list(looks), columns=list(Survey._fields), index=table.index)
    table = table.join(seen.rename(columns={"reason": "unreadable"}))
    states = [_state(row, params, excluded) for row in table.itertuples()]
    table[["status", "reason"]] = pd.DataFrame(states, index=table.index, columns=["status", "reason"])
    return assign_splits(table, params, split_file=split_file)


def build_index(
    dataset: str,
    params: Index,
    limit: int | None,
    manifest: Path,
    out: Path,
    *,
    split: Path,
    split_file: Path | None = None,
    exclude: Path | None = None,
    numbers_per_patient: int | None = None,
    workers: int = 1,
    shard: tuple[int, int] = SINGLE_JOB,
) -> None:
    """Join photographs and labels of ``dataset``, survey each photograph, split by patient.

    An unusable photograph gets a row with a status and a reason. SHA-256 are taken from ``manifest``.

    A killed run resumes. Several jobs can share the survey as they share cropping, see
    :func:`drgrade.images.stage.crop_dataset`.

    Args:
        dataset: its registered name.
        params: the block ``index``.
        limit: maximum number of graded photographs to use.
        manifest: manifest of the stage download.
        out: output file, ``index.parquet``.
        split: output file, the split as CSV; a JSON beside it has the digests of both and the counts.
        split_file: CSV with the split, for the scheme ``file``.
        exclude: CSV with a column image_id: photographs that are not used.
        numbers_per_patient: so many consecutive numbers count as one patient, see
            :func:`drgrade.data.patients.patients_by_number`; None keeps the dataset's patients.
        workers: number of processes; the result does not depend on it.
        shard: number of this job (from 0) and number of jobs; (0, 1) is a single job.

    Raises:
        UserError: a label file is invalid, raw files changed since the manifest was written, the split is
            impossible, numbers are to count as patients that the dataset names, or there is no such shard.
    """
    root, listed = raw_root(dataset), read_manifest(manifest)
    table = (
        DATASETS.get(dataset)()
        .read(root)
        .astype({"grade": "Int8", "path": "string", "official_split": "string", "quality_label": "string"})
    )
    if not len(table):
        raise UserError(f"{root}: no photographs and no labels; see the dataset's layout")
    excluded = _excluded(exclude, dataset, set(table["image_id"]))
    if numbers_per_patient is not None:
        table["named_patient"] = table["patient_id"]  # official parts are checked by these
        table["patient_id"] = patients_by_number(table, numbers_per_patient, dataset)
    if limit is not None:
        table = _limited(table, limit, params.seed)
    table = table.sort_values("image_id", ignore_index=True)
    table["sha256"] = pd.array(digests(root, table["path"], listed), dtype="string")
    photographs = table["path"].fillna("") + "\t" + table["sha256"].fillna("")
    folder = parts_folder(out, [str(root), software("index"), *photographs])
    paths = [root / path if isinstance(path, str) else None for path in table["path"]]
    looks = survey_parts(paths, folder, workers, shard)
    if looks is None:
        log.info("part %d of %d is surveyed", shard[0] + 1, shard[1])
        return
    table = assemble(table, looks, params, excluded=excluded, split_file=split_file)
    counts = table["status"].value_counts()
    log.info("%s: %s", dataset, ", ".join(f"{n} {status}" for status, n in counts.items()))
    if unknown(table):
        log.warning("%s: %s", dataset, UNKNOWN)
    write_table(table, out, INDEX)
    write_split(table, split, params, out)
    shutil.rmtree(folder.parent)

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgrade.params import Index
from drgrade.splits.assign import assign_splits, label_subset
from drgrade.splits.files import SPLIT, write_split


def make_table(patients: int = 40) -> pd.DataFrame:
    """Two eyes of each patient; three rows that take no part, and two with masks."""
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": f"{n:02d}_{eye}", "patient_id": str(n), "grade": n % 5}
        for n in range(patients)
        for eye in ("left", "right")
    ]
    table = pd.DataFrame(rows).assign(subset="grading", status="ok")
    table.loc[[1, 3], "status"] = ["unreadable", "filtered"]
    table.loc[5, ["grade", "status"]] = [pd.NA, "unlabelled"]
    masked = pd.DataFrame({"image_id": ["A_1", "A_2"], "patient_id": ["A_1", "A_2"], "grade": pd.NA})
    table = pd.concat([table, masked.assign(subset="segmentation", status="ok")], ignore_index=True)
    table["sha256"] = [f"{n:064x}" for n in range(len(table))]
    table["phash"] = [rng.bytes(32).hex() for _ in range(len(table))]
    table["official_split"] = pd.NA
    return table.astype({"grade": "Int8", "sha256": "string", "phash": "string"})


def save(table: pd.DataFrame, path: Path, params: Index) -> str:
    index = path.parent / "index.parquet"
    index.parent.mkdir(exist_ok=True)
    index.write_bytes(b"as written")
    return write_split(table, path, params, index)


@pytest.fixture(params=["holdout", "kfold"])
def saved(request, tmp_path: Path) -> tuple[pd.DataFrame, Index, Path]:
    """A table with its split, the params, and the folder it is saved in."""
    params = Index(scheme=request.param, seed=4)
    table = assign_splits(make_table(), params)
    save(table, tmp_path / "split.csv", params)
    return table, params, tmp_path / "split.csv"


def test_the_file_holds_every_photograph_that_takes_part(saved) -> None:
    table, _, path = saved
    expected = table[table["status"] == "ok"].sort_values("image_id", ignore_index=True)
    assert len(expected) == 79
    read = pd.read_csv(path, dtype=SPLIT)
    for column in ("image_id", "patient_id", "grade", "split", "fold"):
        assert (
            read[column].fillna(-1).astype(str).tolist() == expected[column].fillna(-1).astype(str).tolist()
        )


def test_label_fractions_are_those_of_the_training_photographs(saved) -> None:
    table, params, path = saved
    read = pd.read_csv(path, dtype=SPLIT)
    graded = read["image_id"].str.contains("_left|_right")
    training = graded & (read["split"] == "train")
    assert (read["label_fraction"].notna() == training).all()
    ok = table[(table["status"] == "ok") & (table["subset"] == "grading") & (table["split"] == "train")]
    for share in (0.01, 0.05, 0.1, 0.25, 1.0):
        within = read.loc[(read["label_fraction"] <= share).fillna(False), "image_id"]
        assert within.tolist() == label_subset(ok, share, params.seed)


def test_digest_seed_scheme_and_counts_are_beside_it(saved) -> None:
    table, params, path = saved
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["index"] == hashlib.sha256(b"as written").hexdigest()
    assert (about["seed"], about["scheme"]) == (4, params.scheme)
    counts = about["counts"]
    assert sum(part["photographs"] for part in counts.values()) == 79
    for grade in range(5):
        expected = ((table["status"] == "ok") & (table["grade"] == grade)).sum()
        assert sum(part.get(f"grade {grade}", 0) for part in counts.values()) == expected
    names = {"holdout": {"train", "val", "test"}, "kfold": {"train", "val", *(f"fold {k}" for k in range(5))}}
    assert set(counts) == names[params.scheme]


def test_same_table_same_bytes_in_whatever_order(saved, tmp_path: Path) -> None:
    table, params, path = saved
    digest = save(table.sample(frac=1, random_state=1), tmp_path / "again" / "split.csv", params)
    assert (tmp_path / "again" / "split.csv").read_bytes() == path.read_bytes()
    assert (tmp_path / "again" / "split.json").read_bytes() == path.with_suffix(".json").read_bytes()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_saved_split_can_be_split_by(tmp_path: Path) -> None:
    table = make_table()
    for params, again in (
        (Index(), Index(scheme="file")),
        (Index(scheme="kfold"), Index(scheme="kfold", seed=9, folds_file=str(tmp_path / "split.csv"))),
    ):
        first = assign_splits(table, params)
        save(first, tmp_path / "split.csv", params)
        second = assign_splits(table, again, split_file=tmp_path / "split.csv")
        ok = (table["status"] == "ok") & (table["subset"] == "grading")
        assert second[ok][["split", "fold"]].equals(first[ok][["split", "fold"]])

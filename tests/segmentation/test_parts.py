"""Folds: everything is tested once, nothing is in two splits of a fold, and order is irrelevant."""

import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.params import Segmentation
from drgrade.segmentation.parts import part_names, parts


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """An index of photographs with masks: image_id, patient_id, split."""
    index = pd.DataFrame(rows, columns=["image_id", "patient_id", "split"], dtype="string")
    return index.assign(
        subset="segmentation", status="ok", quality_label=pd.NA, sha256=index["image_id"], phash=pd.NA
    )


def folds(count: int, seed: int = 1) -> Segmentation:
    return Segmentation(folds=count, seed=seed)


ROWS = [(f"i{number}", f"p{number // 2}", "train") for number in range(20)]


def test_without_folds_the_split_is_that_of_the_index() -> None:
    index = table(("b", "1", "val"), ("a", "2", "train"), ("c", "3", "test"), ("d", "4", "train"))
    index.loc[3, "status"] = "unreadable"
    index = pd.concat([index, table(("e", "5", "train")).assign(subset="grading")], ignore_index=True)
    (name,), (split,) = zip(*parts(index, Segmentation()).items(), strict=True)
    assert ([name], split.to_dict()) == (part_names(Segmentation()), {"a": "train", "b": "val", "c": "test"})
    assert list(split.index) == ["a", "b", "c"]


@settings(max_examples=8)
@given(st.integers(3, 10), st.integers(0, 5), st.randoms())
def test_folds(count: int, seed: int, random) -> None:
    index = table(*ROWS, ("t", "pt", "test"))
    found = parts(index, folds(count, seed))
    assert list(found) == part_names(folds(count)) == [f"fold{fold}" for fold in range(count)]
    tested = [set(split.index[split == "test"]) for split in found.values()]
    assert sorted(name for names in tested for name in names) == sorted(name for name, *_ in ROWS)
    for fold, split in enumerate(found.values()):
        assert set(split.index[split == "val"]) == tested[(fold + 1) % count]
        patients = split.groupby([patient for _, patient, _ in sorted(ROWS)]).nunique()
        assert (patients == 1).all()
        assert len(split) == len(ROWS)
    assert max(map(len, tested)) - min(map(len, tested)) <= 2  # photographs of a patient
    shuffled = index.sample(frac=1, random_state=random.randrange(1000))
    for name, split in parts(shuffled, folds(count, seed)).items():
        pd.testing.assert_series_equal(split, found[name])


def test_the_seed_decides_the_order() -> None:
    one, two = (parts(table(*ROWS), folds(5, seed))["fold0"] for seed in (1, 2))
    assert (one != two).any()


def test_duplicates_of_two_patients_stay_together_even_through_a_graded_photograph() -> None:
    index = table(*ROWS)
    index["phash"] = [f"{number:02d}" * 32 for number in range(20)]  # far apart
    index.loc[0, "sha256"] = index.loc[6, "sha256"] = "same"
    graded = table(("g", "pg", "train")).assign(subset="grading", phash=index.loc[10, "phash"])
    graded["sha256"] = index.loc[14, "sha256"]
    index = pd.concat([index, graded], ignore_index=True)
    for split in parts(index, folds(4)).values():
        assert split["i0"] == split["i6"]
        assert split["i10"] == split["i14"]
        assert "g" not in split.index


def test_unreadable_files_with_equal_bytes_are_no_duplicates() -> None:
    index = table(*ROWS[:6])  # three patients
    empty = table(("x", "p0", "train"), ("y", "p1", "train"), ("z", "p2", "train"))
    index = pd.concat([index, empty.assign(sha256="empty", status="unreadable")], ignore_index=True)
    assert len(parts(index, folds(3))) == 3


@pytest.mark.parametrize(("rows", "params", "message"), [
    (ROWS[:4], folds(3), r"segmentation\.folds: 3 folds, but only 2 patients .* set it to null"),
    ([("a", "1", "train")], Segmentation(), "holdout has no photograph with masks in split val"),
    ([("a", "1", "val"), ("b", "2", "test")], Segmentation(), "with masks in split train"),
    ([], Segmentation(), "with masks in split train"),
])  # fmt: skip
def test_too_few_photographs_are_refused(rows, params: Segmentation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parts(table(*rows), params)


def test_snakemake_imports_no_slow_library() -> None:
    code = (
        "import sys, drgrade.segmentation.parts; print({'torch', 'scipy', 'sklearn', 'cv2'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

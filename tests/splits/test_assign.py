from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.splits.tables import add_masked, flipped, hashed, make_table

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.assign import (
    FRACTIONS,
    assign_splits,
    check_disjoint,
    label_fractions,
    label_subset,
    limit_patients,
)

grade = st.one_of(st.none(), st.integers(0, 4))
patients = st.lists(st.lists(grade, min_size=1, max_size=3).map(tuple), min_size=3, max_size=60)


def strata(table: pd.DataFrame) -> pd.Series:
    return table.groupby("patient_id")["grade"].max().fillna(-1)


@given(patients, st.integers(0, 5), st.sampled_from([0.1, 0.15, 0.3]), st.sampled_from([0.1, 0.25, 0.4]))
def test_holdout_is_grouped_stratified_and_of_the_right_size(people, seed, val, test) -> None:
    table = make_table(people)
    params = Index(val_fraction=val, test_fraction=test, seed=seed)
    split = assign_splits(table, params)
    by_patient = split.groupby("patient_id")["split"]
    assert (by_patient.nunique() == 1).all()
    part = by_patient.first()
    assert (part == "test").sum() == max(round(test * len(part)), 1)
    assert (part == "val").sum() == pytest.approx(val * len(part), abs=1)
    for stratum, members in part.groupby(strata(split)):
        assert (members == "test").sum() == pytest.approx(test * len(members), abs=1.5), stratum
    shuffled = table.sample(frac=1, random_state=seed)
    again = assign_splits(shuffled, params).sort_index()
    assert again["split"].tolist() == split["split"].tolist()


@given(patients, st.integers(2, 6), st.integers(0, 5))
def test_folds_are_of_whole_patients_and_none_is_empty(people, folds, seed) -> None:
    split = assign_splits(make_table(people), Index(scheme="kfold", folds=folds, seed=seed))
    assert set(split["split"]) == {"train"}
    by_patient = split.groupby("patient_id")["fold"]
    assert (by_patient.nunique() == 1).all()
    assert set(by_patient.first()) == set(range(min(folds, len(people))))


def test_seed_decides_and_nothing_else() -> None:
    table = make_table([(n % 5, n % 5) for n in range(50)])
    first = assign_splits(table, Index(seed=1))["split"]
    assert first.equals(assign_splits(table, Index(seed=1))["split"])
    assert not first.equals(assign_splits(table, Index(seed=2))["split"])


def test_no_fraction_no_part() -> None:
    table = make_table([(n % 5,) for n in range(20)])
    assert set(assign_splits(table, Index(val_fraction=0.0, test_fraction=0.0))["split"]) == {"train"}


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
def test_segmentation_photographs_are_divided_apart(scheme) -> None:
    table = add_masked(make_table([(n % 5,) for n in range(20)]), count=10, tested=3)
    split = assign_splits(table, Index(scheme=scheme)).set_index("image_id")
    masked = split[split["subset"] == "segmentation"]
    assert set(masked.index[masked["split"] == "test"]) == {"A_0", "A_1", "A_2"}
    assert (masked["split"] == "val").sum() == 1
    assert masked["fold"].isna().all()


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
@pytest.mark.parametrize("fraction", [0.0, 0.15])
def test_a_few_segmentation_photographs_still_give_one_for_validation(scheme, fraction) -> None:
    table = add_masked(make_table([(n % 5,) for n in range(20)]), count=2)
    split = assign_splits(table, Index(scheme=scheme, val_fraction=fraction))
    assert sorted(split.loc[split["subset"] == "segmentation", "split"]) == ["train", "val"]


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
def test_a_segmentation_photograph_follows_its_graded_copy(scheme) -> None:
    table = add_masked(make_table([(n % 5,) for n in range(20)]), count=6)
    table.loc[table["image_id"].str.startswith("A_"), "sha256"] = table["sha256"].iloc[:6].to_numpy()
    split = assign_splits(table, Index(scheme=scheme, test_fraction=0.4)).set_index("image_id")["split"]
    assert [split[f"A_{n}"] for n in range(6)] == [split[f"{n}_0"] for n in range(6)]


def folds_file(tmp_path: Path, text: str) -> Index:
    (tmp_path / "folds.csv").write_text(text)
    return Index(scheme="kfold", folds=2, folds_file=str(tmp_path / "folds.csv"))


def test_folds_from_a_file(tmp_path: Path) -> None:
    table = make_table([(0, 1), (2,), (3,)])
    text = "image_id,fold\n0_0,1\n0_1,1\n1_0,0\n2_0,1\nother,0\n"
    split = assign_splits(table, folds_file(tmp_path, text))
    assert split["fold"].tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_id,fold\n0_0,1\n0_1,1\n1_0,0\n", "no fold for 1 graded photographs, such as 2_0"),
        ("image_id,fold\n0_0,0\n0_1,1\n1_0,0\n2_0,1\n", "0_0 (fold 0) and 0_1 (fold 1): same patient"),
        ("image_id,fold\n0_0,2\n", "line 2: needs image_id and a fold of 0 to 1"),
        ("image_id,fold\n0_0,x\n", "line 2"),
        ("name,fold\n0_0,1\n", "line 2"),
        ("image_id,fold\n0_0,1\n0_0,0\n", "line 3: 0_0 is in fold 1 already"),
    ],
)
def test_broken_folds_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        assign_splits(make_table([(0, 1), (2,), (3,)]), folds_file(tmp_path, text))
    assert says in str(error.value)


def test_absent_folds_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        assign_splits(make_table([(0,)] * 5), Index(scheme="kfold", folds_file=str(tmp_path / "none.csv")))


def test_check_disjoint_names_what_straddles() -> None:
    table = make_table([(0, 0), (1,), (2,)]).assign(split=["train", "test", "val", "train"], fold=pd.NA)
    with pytest.raises(UserError, match=r"0_0 \(train\) and 0_1 \(test\): same patient"):
        check_disjoint(table, 10)
    table = make_table([(0,), (1,)]).assign(split=["train", "test"], fold=pd.NA)
    check_disjoint(table, 10)
    table["sha256"] = "same"
    with pytest.raises(UserError, match="same content"):
        check_disjoint(table, 10)


@given(st.integers(5, 80), st.integers(0, 3), st.integers(0, 99))
def test_label_subsets_are_nested_stratified_and_of_whole_patients(count, extra, seed) -> None:
    rng = np.random.default_rng(seed)
    table = make_table(
        [tuple([int(rng.integers(5))] * int(rng.integers(1, 2 + extra))) for _ in range(count)]
    )
    before: set[str] = set()
    for fraction in (0.01, 0.1, 0.25, 0.5, 1.0):
        chosen = set(label_subset(table, fraction, seed))
        assert before <= chosen
        before = chosen
        kept = table[table["image_id"].isin(chosen)]
        assert set(table[table["patient_id"].isin(kept["patient_id"])]["image_id"]) == chosen
        have, all_of = strata(kept).value_counts(), strata(table).value_counts()
        for stratum, number in all_of.items():
            assert have[stratum] >= 1
            assert have[stratum] == pytest.approx(max(fraction * number, 1), abs=0.51)
    assert before == set(table["image_id"])


@given(st.integers(10, 80), st.integers(10, 60), st.integers(0, 99))
def test_limit_is_kept_and_spread_over_grades(count, limit, seed) -> None:
    rng = np.random.default_rng(seed)
    table = make_table([tuple([int(rng.integers(5))] * 2) for _ in range(count)])
    chosen = limit_patients(table, limit, seed)
    kept = table[table["patient_id"].isin(chosen)]
    assert len(kept) == min(limit // 2 * 2, len(table))
    assert set(kept["grade"]) == set(table["grade"])
    share = strata(kept).value_counts() / len(chosen) - strata(table).value_counts() / count
    assert share.abs().max() <= 5.0 / len(chosen)


@given(st.integers(5, 80), st.integers(0, 99))
def test_label_fractions_are_the_smallest_subset_of_each_row(count, seed) -> None:
    rng = np.random.default_rng(seed)
    table = make_table([tuple(rng.integers(0, 5, rng.integers(1, 3)).tolist()) for _ in range(count)])
    fraction = label_fractions(table, seed)
    for share in FRACTIONS:
        assert set(table.loc[fraction <= share, "image_id"]) == set(label_subset(table, share, seed))
    assert fraction.max() <= 1


@pytest.mark.parametrize(("bits", "apart"), [(10, 10), (10, 11), (0, 0), (0, 1), (None, 0)])
def test_near_identical_photographs_share_a_part(bits, apart, caplog) -> None:
    table = hashed(make_table([(n % 5,) for n in range(40)]))
    for n in range(20):
        table.loc[n + 20, "phash"] = flipped(table["phash"][n], apart)
    split = assign_splits(table, Index(duplicate_bits=bits))["split"]
    together = bits is not None and apart <= bits
    assert (split[:20].tolist() == split[20:].tolist()) == together
    assert (f"0_0 (patient 0) and 20_0 (patient 20): {apart} bits apart" in caplog.text) == together


def test_broken_downloads_are_no_copies() -> None:
    table = make_table([(n % 5,) for n in range(20)])
    table["status"] = "unreadable"
    table["sha256"] = "e" * 64  # all empty files
    assert assign_splits(table, Index())["split"].nunique() == 3


def listed(tmp_path: Path, text: str, table: pd.DataFrame) -> pd.DataFrame:
    (tmp_path / "split.csv").write_text(text)
    return assign_splits(table, Index(scheme="file"), split_file=tmp_path / "split.csv")


def test_split_from_a_file(tmp_path: Path, caplog) -> None:
    table = make_table([(0, 1), (2,), (None,), (3,)])
    text = "image_id,note,split\n0_0,a,val\n0_1,b,val\n1_0,,test\n3_0,,train\nelsewhere,,train\n"
    split = listed(tmp_path, text, table)
    assert split["split"].fillna("none").tolist() == ["val", "val", "test", "none", "train"]
    assert split["fold"].isna().all()
    assert "split.csv: 1 of 5 listed photographs are not among those to be graded" in caplog.text


def test_a_split_file_may_leave_out_what_it_does_not_name(tmp_path: Path, caplog) -> None:
    table = make_table([(0,), (1,), (2,), (3,)])
    split = listed(tmp_path, "image_id,split\n*,\n0_0,test\n1_0,train\n2_0,\n", table)["split"]
    assert split.fillna("none").tolist() == ["test", "train", "none", "none"]
    assert "1 graded photographs are not listed: left out" in caplog.text
    assert listed(tmp_path, "image_id,split\n*,train\n0_0,test\n", table)["split"].tolist() == [
        "test",
        *["train"] * 3,
    ]


def test_masked_copies_follow_a_split_file(tmp_path: Path) -> None:
    table = add_masked(make_table([(n % 5,) for n in range(6)]), count=4, tested=1)
    table.loc[table["image_id"] == "A_3", "sha256"] = table["sha256"][1]
    text = "image_id,split\n" + "".join(f"{n}_0,{'test' if n == 1 else 'train'}\n" for n in range(6))
    split = listed(tmp_path, text, table).set_index("image_id")["split"]
    assert split["A_3"] == "test"
    assert split["A_0"] == "test"
    assert sorted(split[["A_1", "A_2"]]) == ["train", "val"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_id,split\n0_0,train\n0_1,train\n", "no split for 1 graded photographs, such as 1_0"),
        ("image_id,split\n0_0,train\n0_1,val\n1_0,test\n", "0_0 (train) and 0_1 (val): same patient"),
        ("image_id,split\n0_0,train\n0_0,val\n", "line 3: 0_0 is train already"),
        ("image_id,split\n0_0,training\n", "line 2: needs an image_id and a split"),
        ("image_id\n0_0\n", "line 2: needs"),
        ("image_id,split\n0_0.png,train\n", "lists none of the dataset's image_ids, such as 0_0"),
        ("", "lists none"),
    ],
)
def test_broken_split_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path, text, make_table([(0, 1), (2,)]))
    assert says in str(error.value)


def test_a_split_file_with_near_copies_across_parts_is_refused(tmp_path: Path) -> None:
    table = hashed(make_table([(0,), (1,), (2,)]))
    table.loc[2, "phash"] = flipped(table["phash"][0], 4)
    with pytest.raises(UserError, match=r"0_0 \(train\) and 2_0 \(test\): same image but for 4 bits"):
        listed(tmp_path, "image_id,split\n0_0,train\n1_0,val\n2_0,test\n", table)


def test_absent_split_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", None):
        with pytest.raises(UserError, match="split_file"):
            assign_splits(make_table([(0,)]), Index(scheme="file"), split_file=path)


def test_a_hundred_thousand_photographs() -> None:
    table = hashed(make_table([(n % 5, n % 5) for n in range(50_000)]))
    split = assign_splits(table, Index())["split"]
    assert split.value_counts()["test"] == 25_000


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
def test_leaving_photographs_out_moves_no_other(scheme) -> None:
    table = make_table([(n % 5, (n + 1) % 5) for n in range(50)])
    before = assign_splits(table, Index(scheme=scheme))
    table.loc[::7, "status"] = "filtered"
    assert assign_splits(table, Index(scheme=scheme))[["split", "fold"]].equals(before[["split", "fold"]])

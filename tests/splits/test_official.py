import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.splits.tables import add_masked, flipped, hashed, make_table

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.assign import assign_splits, check_disjoint
from drgrade.splits.groups import split_groups


@pytest.mark.parametrize("test", ["absent", "without grades", "without photographs"])
def test_without_a_graded_test_part_all_is_trained_on_with_a_warning(test, caplog) -> None:
    """As of APTOS 2019, whose test grades were never released, and of IDRiD without its test folder."""
    table = make_table([(n % 5,) for n in range(10)], ["train"] * 8 + ["test"] * 2)
    if test == "absent":
        table = table.head(8)
    elif test == "without grades":
        table.loc[8:, ["grade", "status"]] = pd.NA, "unlabelled"
    else:
        table.loc[8:, ["status", "sha256"]] = "missing", pd.NA
    split = assign_splits(table, Index(scheme="official", val_fraction=0.0))["split"]
    assert split.tolist() == table["official_split"].tolist()
    assert "none of the 8 graded photographs is a test photograph: models can be trained" in caplog.text
    val = assign_splits(table, Index(scheme="official", val_fraction=0.25))["split"]
    assert val.value_counts()[["train", "val"]].to_dict() == {"train": 6, "val": 2}


def test_official_split_is_kept_and_its_training_part_divided() -> None:
    official = ["test" if n >= 30 else "train" for n in range(40)]
    table = make_table([(n % 5, n % 5) for n in range(40)], official)
    split = (
        assign_splits(table, Index(scheme="official", val_fraction=0.2))
        .groupby("patient_id")["split"]
        .first()
    )
    assert {int(n) for n in split.index[split == "test"]} == set(range(30, 40))
    assert (split == "val").sum() == 6


def test_official_validation_part_is_used_as_it_is() -> None:
    official = ["val" if n < 5 else "test" if n < 10 else "train" for n in range(20)]
    split = assign_splits(make_table([(n % 5,) for n in range(20)], official), Index(scheme="official"))
    assert split["split"].tolist() == official


def test_official_without_validation_tests_what_the_dataset_keeps_for_it(caplog) -> None:
    official = ["val" if n < 5 else "test" if n < 10 else "train" for n in range(20)]
    table = make_table([(n % 5,) for n in range(20)], official)
    table.loc[0, "sha256"] = table.loc[5, "sha256"]  # a copy in either part: both are tested, no news
    split = assign_splits(table, Index(scheme="official", val_fraction=0.0))
    assert split["split"].tolist() == ["test"] * 10 + ["train"] * 10
    assert "left out" not in caplog.text
    assert "nothing will be tested" not in caplog.text


def test_official_training_copies_of_the_test_are_left_out_by_name(caplog) -> None:
    """IDRiD's training photograph 118 is its test photograph 064: the test stays the 103 of publications."""
    table = hashed(
        make_table([(n % 5,) for n in range(20)], ["test" if n < 5 else "train" for n in range(20)])
    )
    table.loc[19, "sha256"] = table.loc[0, "sha256"]
    table.loc[18, "phash"] = flipped(table["phash"][1], 3)
    table.loc[17, "patient_id"] = table.loc[18, "patient_id"]  # no copy itself, but the same person as one
    table.loc[16, "patient_id"] = table.loc[2, "patient_id"]
    split = assign_splits(table, Index(scheme="official"))
    assert split["split"][:5].tolist() == ["test"] * 5
    assert split["split"][16:].isna().all()
    assert split["status"].tolist() == ["ok"] * 16 + ["filtered"] * 4
    assert split["reason"].tolist()[16:] == [
        "its patient has 2_0 in the official test part",
        "tied by copies to 1_0 in the official test part",
        "a copy of 1_0 in the official test part",
        "a copy of 0_0 in the official test part",
    ]
    assert "4 photographs left out of the official split: " in caplog.text
    assert "19_0: a copy of 0_0 in the official test part" in caplog.text


def test_a_reason_of_its_own_comes_before_that_of_a_twin() -> None:
    table = make_table([(n % 5,) for n in range(20)], ["test" if n < 5 else "train" for n in range(20)])
    table.loc[19, ["sha256", "status", "reason"]] = table.loc[0, "sha256"], "filtered", "too dark"
    split = assign_splits(table, Index(scheme="official"))
    assert split.loc[19, ["status", "reason"]].tolist() == ["filtered", "too dark"]
    assert pd.isna(split["split"][19])


def masked_table() -> pd.DataFrame:
    """Photographs 0-4 are tested, 5-19 trained on; with masks, A_0 to A_3 are tested, A_4 to A_7 not."""
    table = make_table([(n % 5,) for n in range(20)], ["test" if n < 5 else "train" for n in range(20)])
    return add_masked(table, 8, tested=4).set_index("image_id", drop=False).rename_axis(None)


def test_a_test_photograph_with_masks_costs_no_training_photograph() -> None:
    """It has no grade; of what trains lesion networks, copies of either kind of test are left out."""
    table = masked_table()
    table.loc["A_0", "sha256"] = table.loc["19_0", "sha256"]
    table.loc["A_1", "sha256"] = table.loc["0_0", "sha256"]
    table.loc["A_7", "sha256"] = table.loc["1_0", "sha256"]
    table.loc["A_6", "sha256"] = table.loc["A_2", "sha256"]
    table.loc["A_5", "sha256"] = table.loc["18_0", "sha256"]  # both train
    split = assign_splits(table, Index(scheme="official"))
    assert split["official_split"][split["split"] == "test"].tolist() == ["test"] * (5 + 4)
    assert split.loc["19_0", ["split", "status"]].tolist() == ["train", "ok"]
    assert split["reason"][split["status"] == "filtered"].to_dict() == {
        "A_7": "a copy of 1_0 in the official test part",
        "A_6": "a copy of A_2 in the official test part",
    }
    assert split.loc["A_5", "split"] == split.loc["18_0", "split"]


def test_copies_of_both_kinds_of_test_photographs_are_left_out_for_the_graded_one() -> None:
    table = masked_table()
    table.loc[["A_0", "19_0"], "sha256"] = table.loc["3_0", "sha256"]
    table.loc["17_0", "patient_id"] = table.loc["A_1", "patient_id"]  # a named patient, without a grade there
    split = assign_splits(table, Index(scheme="official"))
    left_out = split["reason"][split["status"] == "filtered"].to_dict()
    assert left_out == {"19_0": "a copy of 3_0 in the official test part"}
    assert split["split"][["A_0", "A_1", "3_0"]].tolist() == ["test"] * 3


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_a_block_of_numbers_loses_only_the_copies_themselves(val_fraction) -> None:
    """Blocks 16-19 and 0-3 share a photograph; block 4-7 is cut by the parts into 4 and 5-7."""
    table = masked_table()
    blocks = [f"{n // 4 * 4}-{n // 4 * 4 + 3}" for n in range(20)]
    table = table.assign(named_patient=table["patient_id"], patient_id=[*blocks, *table["patient_id"][20:]])
    table.loc["18_0", "sha256"] = table.loc["0_0", "sha256"]
    table.loc["A_0", "sha256"] = table.loc["9_0", "sha256"]
    split = assign_splits(table, Index(scheme="official", val_fraction=val_fraction))
    assert split["reason"][split["status"] == "filtered"].to_dict() == {
        "18_0": "a copy of 0_0 in the official test part"
    }
    graded = split.head(20).drop("18_0")
    assert graded["split"].head(5).tolist() == ["test"] * 5
    assert (graded["split"].iloc[5:] == "val").any() == (val_fraction > 0)
    assert (graded.groupby("patient_id")["split"].nunique() == 1).all()
    assert graded["patient_id"].unique().tolist() == [
        "0-3", "4-7 test", "4-7 train", "8-11", "12-15", "16-19"
    ]  # fmt: skip


def test_only_a_grade_and_test_masks_may_be_of_one_photograph() -> None:
    table = masked_table().assign(split=lambda t: t["official_split"], fold=pd.NA)
    table.loc["A_0", "sha256"] = table.loc["19_0", "sha256"]
    check_disjoint(table, 10)
    for trained, tested in (("A_7", "1_0"), ("A_6", "A_2")):
        leaking = table.copy()
        leaking.loc[trained, "sha256"] = table.loc[tested, "sha256"]
        with pytest.raises(UserError, match=f"{trained}.*same content"):
            check_disjoint(leaking, 10)


@given(st.data())
def test_official_parts_lose_what_is_tied_to_a_stricter_one_and_nothing_else(data) -> None:
    count = data.draw(st.integers(6, 30))
    official = data.draw(st.lists(st.sampled_from(["train", "val", "test"]), min_size=count, max_size=count))
    table = make_table([(n % 5,) for n in range(count)], ["test", *official[1:]])
    content = data.draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    table["sha256"] = [f"{n:064x}" for n in content]
    table["patient_id"] = [str(n) for n in data.draw(st.permutations(range(count)))]
    some = data.draw(st.lists(st.integers(0, count - 1), max_size=5))
    table.loc[some, "patient_id"] = "0"
    split = assign_splits(table, Index(scheme="official", val_fraction=0.1)).sort_index()
    rank = pd.Series(["test", *official[1:]]).map({"test": 0, "val": 1, "train": 2})
    strictest = rank.groupby(split_groups(table, 10)).transform("min")
    left_out = rank > strictest
    assert (split["status"] == "filtered").tolist() == split["split"].isna().tolist() == left_out.tolist()
    kept = split[~left_out]
    if 1 in rank[~left_out].tolist():  # otherwise validation photographs are drawn
        assert kept["split"].tolist() == [["test", *official[1:]][n] for n in kept.index]
    assert (kept.loc[rank[~left_out] == 0, "split"] == "test").all()
    for row in split[left_out].itertuples():
        twin = re.search(r"(\S+) in the official (\w+) part$", row.reason)
        assert {"test": 0, "val": 1}[twin[2]] == rank[int(twin[1].removesuffix("_0"))] < rank[row.Index]


def test_official_needs_a_dataset_with_an_official_split() -> None:
    """Photographs with lesion masks may have one; the graded ones of the dataset do not."""
    table = add_masked(make_table([(n % 5,) for n in range(20)]), 4, tested=2)
    with pytest.raises(UserError, match=r"the dataset has no official split; use holdout or kfold$"):
        assign_splits(table, Index(scheme="official"))

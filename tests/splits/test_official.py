import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.splits.tables import add_masked, flipped, hashed, make_table

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.assign import assign_splits, split_groups


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


def test_official_test_masks_stay_and_what_copies_them_is_left_out() -> None:
    table = make_table([(n % 5,) for n in range(20)], ["test" if n < 5 else "train" for n in range(20)])
    table = add_masked(table, 8, tested=4)
    table.loc[20, "sha256"] = table.loc[19, "sha256"]  # A_0, tested, is a training photograph
    table.loc[27, "sha256"] = table.loc[1, "sha256"]  # A_7 trains, and is a test photograph
    table.loc[26, "sha256"] = table.loc[18, "sha256"]  # A_6 trains on both sides
    split = assign_splits(table, Index(scheme="official")).set_index("image_id")
    assert (split["split"] == "test").sum() == 5 + 4
    assert split.loc["19_0", "reason"] == "a copy of A_0 in the official test part"
    assert split.loc["A_7", "reason"] == "a copy of 1_0 in the official test part"
    assert split.loc["A_6", "split"] == split.loc["18_0", "split"] != "test"


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

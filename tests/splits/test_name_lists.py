import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.params import Index
from drgrade.splits.assign import assign_splits
from drgrade.splits.name_lists import (
    check_lists,
    examinations,
    main,
    overlapping,
    read_names,
    reissue,
    split_csv,
)

REISSUED = Path(__file__).parents[2] / "params" / "messidor2_clpi_split.csv"
# The pattern of the released lists in miniature: val is the first third of train, test the next.
TRAIN = [
    "IM003564.jpg", "20060407_40957_0200_PP.png", "20051116_58864_0400_PP.png", "IM003725.jpg",
    "IM000066.jpg", "20060522_46400_0100_PP.png", "IM001168.jpg", "IM003827.jpg",
    "20051214_41429_0100_PP.png", "IM001560.jpg", "IM001454.jpg", "IM002493.jpg",
]  # fmt: skip


def write_lists(folder: Path) -> list[Path]:
    parts = {"train": TRAIN, "val": TRAIN[:4], "test": TRAIN[4:8]}
    for part, names in parts.items():
        (folder / f"{part}.csv").write_text("".join(f"{name}\n" for name in names))
    return [folder / f"{part}.csv" for part in parts]


PAIRS = [
    "20051116_58864_0400_PP (train) and 20051116_58864_0400_PP (val): same image",
    "20060407_40957_0200_PP (train) and 20060407_40957_0200_PP (val): same image",
    "20060522_46400_0100_PP (train) and 20060522_46400_0100_PP (test): same image",
    "IM000066 (train) and IM000066 (test): same image",
    "IM001168 (train) and IM001168 (test): same image",
    "IM003564 (train) and IM003564 (val): same image",
    "IM003725 (train) and IM003725 (val): same image",
    "IM003827 (train) and IM003827 (test): same image",
]


def test_the_released_pattern_is_refused_with_its_pairs(tmp_path: Path, capsys) -> None:
    paths = write_lists(tmp_path)
    lists = dict(zip(("train", "val", "test"), map(read_names, paths), strict=True))
    assert overlapping(lists) == PAIRS
    with pytest.raises(UserError) as error:
        check_lists(lists)
    assert str(error.value) == (
        f"8 overlaps between the lists: {'; '.join(PAIRS)}; put each photograph into one list"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["check", *map(str, paths)])
    assert "8 overlaps" in str(exit_.value)
    assert capsys.readouterr().out.splitlines() == PAIRS


def test_sound_lists_pass() -> None:
    lists = {"train": TRAIN[:6], "val": TRAIN[6:9], "test": TRAIN[9:]}
    assert overlapping(lists) == []
    check_lists(lists)


def test_more_than_ten_pairs_are_counted() -> None:
    with pytest.raises(UserError, match=r"^12 overlaps .*; and 2 more; "):
        check_lists({"train": TRAIN, "test": TRAIN})


def test_the_committed_split_is_what_the_command_makes() -> None:
    names = read_names(REISSUED)
    assert len(set(names)) == len(names) == 1046
    assert split_csv(reissue(names, seed=1)) == REISSUED.read_bytes()
    assert split_csv(reissue(reversed(names), seed=1)) == REISSUED.read_bytes()
    assert split_csv(reissue(names, seed=2)) != REISSUED.read_bytes()


def test_no_day_and_no_run_of_numbers_straddles_the_committed_split() -> None:
    split = pd.read_csv(REISSUED, keep_default_na=False).set_index("image_id")["split"].drop("*")
    days: dict[str, set[str]] = {}
    for name, part in split.items():
        if match := re.match(r"(\d{8})_", str(name)):
            days.setdefault(match[1], set()).add(part)
    assert len(days) == 24
    assert {len(parts) for parts in days.values()} == {1}
    numbered = sorted((int(str(name)[2:]), part) for name, part in split.items() if str(name)[:2] == "IM")
    assert len(numbered) == 420
    for (a, part), (b, other) in pairwise(numbered):
        assert part == other or b - a > 10
    assert {part: round(n / 1046, 2) for part, n in Counter(split).items()} == {
        "train": 0.6,
        "val": 0.2,
        "test": 0.2,
    }


def test_the_committed_split_serves_the_scheme_file() -> None:
    names = [*read_names(REISSUED), "IM999999"]
    table = pd.DataFrame({"image_id": names, "patient_id": names, "sha256": pd.NA, "phash": pd.NA})
    table = table.assign(grade=1, subset="grading", status="ok", official_split=pd.NA)
    table = table.astype({"grade": "Int8", "sha256": "string", "phash": "string"})
    split = assign_splits(table, Index(scheme="file"), split_file=REISSUED)["split"]
    assert split.value_counts().to_dict() == {"train": 624, "val": 214, "test": 208}
    assert pd.isna(split.iloc[-1])


@given(
    st.sets(st.integers(0, 3000), max_size=60),
    st.sets(st.tuples(st.integers(20060401, 20060409), st.integers(0, 9)), max_size=40),
    st.integers(0, 9),
)
def test_groups_stay_whole_and_shares_are_met_to_a_group(numbers, dated, seed) -> None:
    names = [f"IM{n:06d}" for n in numbers] + [f"{day}_{n}_0200_PP" for day, n in dated]
    group_of, parts = examinations(names), reissue(names, seed)
    assert set(parts) == set(names)
    by_group: dict[object, set[str]] = {}
    for name, group in group_of.items():
        by_group.setdefault(group, set()).add(parts[name])
    assert all(len(found) == 1 for found in by_group.values())
    for site in {site for site, _ in group_of.values()}:
        members = [name for name in names if group_of[name][0] == site]
        largest = max(Counter(group_of[name] for name in members).values())
        have = Counter(parts[name] for name in members)
        for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert have[part] <= share * len(members) + largest


def test_gaps_of_more_than_ten_part_runs_of_numbers() -> None:
    groups = examinations(["IM000032", "IM000001", "IM000011", "IM000022", "20060401_5_0100_PP"])
    assert groups == {
        "IM000001": ("IM", "IM1"),
        "IM000011": ("IM", "IM1"),
        "IM000022": ("IM", "IM22"),
        "IM000032": ("IM", "IM22"),
        "20060401_5_0100_PP": ("0100", "20060401"),
    }


def test_the_command_reissues_lists(tmp_path: Path, capsys) -> None:
    paths = [str(path) for path in write_lists(tmp_path)]
    main(["reissue", *paths, "--seed", "3", "--out", str(tmp_path / "split.csv")])
    assert (tmp_path / "split.csv").read_bytes() == split_csv(reissue(read_names(Path(paths[0])), 3))
    assert "sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "names no photograph"),
        (b"\xff\xfe\x00", "not text"),
        (b"a.png\n", "not a name"),
    ],
)
def test_broken_lists(tmp_path: Path, content, says) -> None:
    if content is not None:
        (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=says):
        reissue(read_names(tmp_path / "list.csv"), 1)

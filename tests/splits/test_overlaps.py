import hashlib
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.params import Roles
from drgrade.schema import INDEX, write_table
from drgrade.splits.overlaps import (
    COLUMNS,
    LEAK_COLUMNS,
    find_leaks,
    overlaps,
    straddling,
)

BITS = 10
HASHES = [np.random.default_rng(0).bytes(32 * 40)[32 * n : 32 * n + 32].hex() for n in range(40)]


def near(digits: str, bits: int) -> str:
    return f"{int(digits, 16) ^ ((1 << bits) - 1):064x}"


def make_index(*rows: dict[str, object]) -> pd.DataFrame:
    """Rows of an index; without further word photograph n of patient n, graded, ok, in train."""
    table = pd.DataFrame([{"image_id": f"i{n}", **row} for n, row in enumerate(rows)])
    defaults = {
        "patient_id": table["image_id"],
        "subset": "grading",
        "grade": 1,
        "split": "train",
        "status": "ok",
    }
    for name in INDEX:
        default = defaults.get(name, pd.NA)
        table[name] = table[name].fillna(default) if name in table else default
    table.loc[table["subset"] == "segmentation", "grade"] = pd.NA
    return table[list(INDEX)].astype(INDEX)


row = st.fixed_dictionaries(
    {
        "patient_id": st.sampled_from(["p", "q", "r", "s", "t"]),
        "sha256": st.sampled_from([None, *"abcdef"]),
        "phash": st.one_of(st.none(), st.tuples(st.integers(0, 3), st.sampled_from([0, 6, 12]))),
        "split": st.sampled_from(["train", "val", "test"]),
        "subset": st.sampled_from(["grading", "segmentation"]),
        "status": st.sampled_from(["ok", "ok", "ok", "unreadable"]),
    }
)
tables = st.lists(row, min_size=1, max_size=8).map(
    lambda rows: make_index(
        *({**one, "phash": one["phash"] and near(HASHES[one["phash"][0]], one["phash"][1])} for one in rows)
    )
)


def levels(a: pd.Series, b: pd.Series, same_dataset: bool) -> dict[str, int]:
    """Brute force: how two rows overlap."""
    found = {}
    if same_dataset and a["patient_id"] == b["patient_id"] and a["split"] != b["split"]:
        found["patient"] = 0
    if pd.notna(a["sha256"]) and pd.notna(b["sha256"]) and a["sha256"] == b["sha256"]:
        found["content"] = 0
    elif pd.notna(a["phash"]) and pd.notna(b["phash"]):
        apart = (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count()
        if apart <= BITS:
            found["perceptual"] = apart
    return found


def brute_force(indexes: dict[str, pd.DataFrame]) -> dict[tuple[str, str, str, str, str], int]:
    rows = [
        (name, one)
        for name, table in sorted(indexes.items())
        for _, one in table.iterrows()
        if one["status"] == "ok"
    ]
    return {
        (name, a["image_id"], other, b["image_id"], level): apart
        for (name, a), (other, b) in combinations(rows, 2)
        for level, apart in levels(a, b, name == other).items()
    }


def cell(indexes: dict[str, pd.DataFrame], dataset: str, image_id: str) -> tuple[str, str, str]:
    one = indexes[dataset].set_index("image_id").loc[image_id]
    return dataset, one["subset"], one["split"]


@given(tables, tables)
def test_found_pairs_overlap_and_every_overlap_is_seen_from_both_sides(first, second) -> None:
    indexes = {"one": first, "two": second}
    expected = brute_force(indexes)
    leaks = find_leaks(indexes, ALL, BITS)  # these datasets have no role
    assert set(leaks["verdict"]) <= {"unused"}
    found = leaks[COLUMNS]
    keys = [(r.dataset_a, r.image_a, r.dataset_b, r.image_b, r.level) for r in found.itertuples(index=False)]
    assert len(set(keys)) == len(keys)
    assert {key: expected.get(key) for key in keys} == dict(zip(keys, found["distance"], strict=True))

    # at each level, a photograph meets every (dataset, subset, part) that holds an overlapping one
    def meetings(pairs: list[tuple[str, str, str, str, str]]) -> set[object]:
        both = [(d, i, e, j, lv) for d, i, e, j, lv in pairs] + [(e, j, d, i, lv) for d, i, e, j, lv in pairs]
        return {(d, i, cell(indexes, e, j), lv) for d, i, e, j, lv in both}

    assert meetings(keys) == meetings(list(expected))


@given(tables)
def test_straddling_pairs_of_one_table(table) -> None:
    table = table.assign(status="ok")
    expected = {(a, b) for _, a, _, b, _ in brute_force({"": table}) if cell_split(table, a, b)}
    sentences = straddling(table, BITS)
    assert bool(sentences) == bool(expected)
    named = {tuple(part.split(" ")[0] for part in one.split(" and ")) for one in sentences}
    assert named <= expected
    assert {image for pair in named for image in pair} == {image for pair in expected for image in pair}


def cell_split(table: pd.DataFrame, a: str, b: str) -> bool:
    split = table.set_index("image_id")["split"]
    return bool(split[a] != split[b])


SHA = {"sha256": "a" * 64}
ALL = Roles(lesions="main", pretrain="main", grade="main")
APART = Roles(lesions="masks", pretrain="pool", grade="main", external=["out"])


def verdicts(roles: Roles, **indexes: pd.DataFrame) -> list[str]:
    return find_leaks(indexes, roles, BITS)["verdict"].tolist()


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("train", "train", "same part"),
        ("train", "val", "leak"),
        ("train", "test", "leak"),
        ("val", "test", "leak"),  # epochs are chosen on val
        ("test", "test", "same part"),
    ],
)
def test_within_the_graded_dataset(a, b, verdict) -> None:
    table = make_index({"split": a, **SHA}, {"split": b, **SHA})
    assert verdicts(ALL, main=table) == [verdict]


@pytest.mark.parametrize(("a", "b", "verdict"), [(0, 0, "same part"), (0, 1, "leak")])
def test_folds_test_their_own_model_and_train_the_others(a, b, verdict) -> None:
    table = make_index({"fold": a, **SHA}, {"fold": b, **SHA})
    assert verdicts(ALL, main=table) == [verdict]


MASKED = {"subset": "segmentation"}


@pytest.mark.parametrize(
    ("masked", "graded", "verdict"),
    [
        ({"split": "train"}, {"split": "train"}, "same part"),
        ({"split": "train"}, {"split": "test"}, "leak"),  # the detector saw it
        ({"split": "test"}, {"split": "train"}, "other label"),  # a grade tells no mask
        ({"split": "val"}, {"split": "train"}, "other label"),
        ({"split": "val"}, {"split": "val"}, "other label"),
        ({"split": "test"}, {"fold": 3}, "other label"),
        ({"split": "test"}, {"split": "test"}, "same part"),
        ({"split": "val"}, {"split": "test"}, "same part"),  # neither is trained on
        ({"split": "train"}, {"fold": 3}, "leak"),  # the detector is not trained by fold
    ],
)
def test_masks_and_grades(masked, graded, verdict) -> None:
    rows = {**MASKED, **SHA, **masked}, {**SHA, **graded}
    assert verdicts(ALL, main=make_index(*rows)) == [verdict]
    assert verdicts(APART, masks=make_index(rows[0]), main=make_index(rows[1])) == [verdict]


def test_masks_that_train_and_masks_that_test_may_not_be_of_one_photograph() -> None:
    table = make_index({**MASKED, **SHA, "split": "train"}, {**MASKED, **SHA, "split": "test"})
    assert verdicts(ALL, main=table) == ["leak"]


@pytest.mark.parametrize(
    ("pool", "graded", "verdict"),
    [
        ({"split": "train"}, {"split": "train"}, "same part"),
        ({"split": "train"}, {"split": "val"}, "leak"),
        ({"split": "train"}, {"split": "test"}, "leak"),
        ({"split": "train"}, {"fold": 1}, "leak"),  # another dataset's encoder is not trained by fold
        ({"fold": 1}, {"fold": 1}, "leak"),
        ({"split": "val"}, {"split": "test"}, "unused"),
        ({"split": "test"}, {"split": "train"}, "unused"),
    ],
)
def test_pretraining_on_another_dataset(pool, graded, verdict) -> None:
    pair = make_index({**SHA, **pool}), make_index({**SHA, **graded})
    assert verdicts(APART, pool=pair[0], main=pair[1]) == [verdict]


@pytest.mark.parametrize(
    ("name", "row", "verdict"),
    [
        ("main", {"split": "train"}, "leak"),
        ("main", {"split": "val"}, "leak"),
        ("main", {"split": "test"}, "same part"),
        ("main", {"fold": 0}, "leak"),
        ("pool", {"split": "train"}, "leak"),
        ("masks", {**MASKED, "split": "train"}, "leak"),
        ("masks", {**MASKED, "split": "test"}, "same part"),
        ("masks", {"split": "train"}, "unused"),  # graded photographs of the lesions' dataset
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_external_photographs_are_all_tested(name, row, verdict, split) -> None:
    out = make_index({**SHA, "split": split})
    assert verdicts(APART, **{name: make_index({**SHA, **row}), "out": out}) == [verdict]


def test_a_dataset_that_trains_and_is_external_leaks_by_itself() -> None:
    table = make_index({"split": "train"}, {"split": "test"})
    leaks = find_leaks({"pool": table}, APART.model_copy(update={"external": ["pool"]}), BITS)
    assert leaks[["image_a", "image_b", "level", "verdict", "use_a"]].to_numpy().tolist() == [
        ["i0", "i0", "image", "leak", "train test"]
    ]


def test_patients_are_compared_within_a_dataset_only() -> None:
    one = make_index({"patient_id": "7", "split": "train"}, {"patient_id": "7", "split": "test"})
    two = make_index({"patient_id": "7", "split": "test"}, {"patient_id": "8", "split": "test"})
    leaks = find_leaks({"main": one, "out": two}, APART, BITS)
    assert leaks[["dataset_a", "image_a", "dataset_b", "image_b", "level"]].to_numpy().tolist() == [
        ["main", "i0", "main", "i1", "patient"]
    ]


def test_two_eyes_in_one_part_are_no_news() -> None:
    assert find_leaks({"main": make_index(*[{"patient_id": "7"}] * 2)}, ALL, BITS).empty


@pytest.mark.parametrize("apart", [9, 10, 11])
def test_perceptual_copies_across_datasets(apart) -> None:
    one = make_index({"phash": HASHES[0], "split": "train"})
    two = make_index({"phash": near(HASHES[0], apart), "split": "test"})
    leaks = find_leaks({"main": one, "out": two}, APART, BITS)
    expected = [["perceptual", apart, "leak"]] if apart <= BITS else []
    assert leaks[["level", "distance", "verdict"]].to_numpy().tolist() == expected
    assert find_leaks({"main": one, "out": two}, APART, None).empty


def leaking() -> dict[str, pd.DataFrame]:
    """Twelve photographs of ``main`` that lie in ``out`` too, one of them twice; and a harmless copy."""
    copies = [{"sha256": f"{n:064x}", "split": "train"} for n in range(12)]
    own = {"sha256": "b" * 64, "split": "train"}
    twice = [*copies, {"sha256": f"{0:064x}", "split": "train"}, own, own]
    return {"main": make_index(*twice), "out": make_index(*copies)}


def test_leaving_out_the_training_side_settles_it() -> None:
    indexes = leaking()
    leaks = find_leaks(indexes, APART, BITS)
    drop = leaks[leaks["dataset"] == "main"]["image_id"]
    assert set(drop) == {f"i{n}" for n in range(13)}
    assert set(leaks["dataset"]) == {"main", ""}
    main = indexes["main"]
    main.loc[main["image_id"].isin(drop), "status"] = "filtered"
    assert find_leaks(indexes, APART, BITS)["verdict"].tolist() == ["same part"]


@given(tables, tables, st.booleans())
def test_leaving_out_the_training_side_always_settles_it(first, second, together) -> None:
    indexes = {"main": first, "out": second}
    roles = Roles(lesions="main", pretrain="out" if together else "main", grade="main")
    if not together:
        roles = roles.model_copy(update={"external": ["out"]})
    leaks = find_leaks(indexes, roles, BITS)
    for name, table in indexes.items():
        drop = leaks.loc[leaks["dataset"] == name, "image_id"]
        table.loc[table["image_id"].isin(drop), "status"] = "filtered"
    assert "leak" not in set(find_leaks(indexes, roles, BITS)["verdict"])


def test_the_stage_writes_both_files_before_it_refuses(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.parquet" for name in ("main", "out")}
    for name, table in leaking().items():
        write_table(table, paths[name], INDEX)
    with pytest.raises(UserError) as error:
        overlaps(paths, APART, BITS, tmp_path / "once")
    text = str(error.value)
    first = "main/i0 (train) and out/i0 (test): same content; "
    assert text.startswith(f"13 overlaps between training and test: {first}")
    assert text.count("same content") == 10
    assert "; and 3 more; " in text
    remedy = "which names those on the training side, and give the copy as datasets.<name>.exclude"
    assert text.endswith(f"copy {tmp_path / 'once/leaks.csv'}, {remedy}")
    written = pd.read_csv(tmp_path / "once" / "overlaps.csv", keep_default_na=False)
    assert list(written.columns) == LEAK_COLUMNS
    assert len(written) == 15
    assert set(written.loc[written["dataset"] == "main", "image_id"]) == {f"i{n}" for n in range(13)}
    summary = json.loads((tmp_path / "once" / "overlaps.json").read_text())
    assert summary == {
        "duplicate_bits": BITS,
        "indexes": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()},
        "leaks": 13,
        "pairs": {"leak": {"content": 13}, "same part": {"content": 2}},
        "photographs": {"main": 15, "out": 12},
    }
    leaks = pd.read_csv(tmp_path / "once" / "leaks.csv")
    assert set(leaks.loc[leaks["dataset"] == "main", "image_id"]) == {f"i{n}" for n in range(13)}
    before = (tmp_path / "once" / "overlaps.csv").read_bytes()
    overlaps(paths, APART, BITS, tmp_path / "again", refuse=["patient"])
    assert (tmp_path / "again" / "overlaps.csv").read_bytes() == before


def test_nothing_to_find(tmp_path: Path) -> None:
    write_table(make_index({}, {}), tmp_path / "main.parquet", INDEX)
    overlaps({"main": tmp_path / "main.parquet"}, ALL, BITS, tmp_path)
    assert not (tmp_path / "leaks.csv").exists()
    assert (tmp_path / "overlaps.csv").read_text() == ",".join(LEAK_COLUMNS) + "\n"
    assert json.loads((tmp_path / "overlaps.json").read_text())["pairs"] == {}

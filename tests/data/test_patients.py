"""Patient ids: one kind for a dataset, and never the eyes of one person in two splits."""

import logging
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.data.folder import Folder
from drgrade.data.patients import Source, from_name, patient_ids, patients_by_number, tidy, unknown
from drgrade.errors import UserError

FILE = Path("labels.csv")


@pytest.mark.parametrize(
    ("name", "patient", "eye"),
    [
        ("17_left", "17", "left"),
        ("P000-OD", "P000", "right"),
        ("P000_OS_2", "P000", "left"),
        ("12R", "12", "right"),
        ("12L", "12", "left"),
        ("anna maria.os", "anna maria", "left"),
        ("left_17", "17", "left"),
        ("P1_2020_r", "P1_2020", "right"),
        ("000c1434d8d7", "", None),
        ("laser", "", None),
        ("left", "", None),
        ("IDRiD_001", "", None),
    ],
)
def test_names_tell_patient_and_eye(name: str, patient: str, eye: str | None) -> None:
    assert from_name(name) == (patient, eye)


@pytest.mark.parametrize(("text", "right"), [("1.0", "1"), ("17.0", "17"), ("1.5", "1.5"), ("P1.0", "P1.0")])
def test_whole_numbers_stay_whole(text: str, right: str) -> None:
    assert tidy(text) == right


def test_a_gap_is_filled_from_the_other_eye() -> None:
    sources = [
        Source("a_left", "P7", "", "a"),
        Source("a_right", "", "", "a"),
        Source("b_left", "P8", "", "b"),
    ]
    assert patient_ids(sources, FILE) == ["P7", "P7", "P8"]


def test_gaps_are_filled_by_a_source_that_tells_the_same_people_apart() -> None:
    sources = [Source("a_left", "P7", "", "a"), Source("b_left", "", "", "b"), Source("b_right", "", "", "b")]
    assert patient_ids(sources, FILE) == ["P7", "b", "b"]


@pytest.mark.parametrize(
    "sources",
    [
        # one person under two names: b could be that person as well
        [Source("a_left", "P", "", "a"), Source("c_left", "P", "", "c"), Source("b_left", "", "", "b")],
        # nothing but the column tells a person
        [Source("x", "P"), Source("y")],
        # the name would be an id that another person has
        [Source("a_left", "b", "", "a"), Source("b_left", "", "", "b")],
    ],
)
def test_a_gap_that_nothing_fills_is_refused_with_its_photographs(sources: list[Source]) -> None:
    with pytest.raises(
        UserError, match=rf"labels.csv: 1 of .*{sources[-1].image!r}; fill in the column patient"
    ):
        patient_ids(sources, FILE)


def test_names_alone_leave_the_others_as_patients_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    sources = [Source("a_left", name="a"), Source("a_right", name="a"), Source("x"), Source("y")]
    assert patient_ids(sources, FILE) == ["a", "a", "x", "y"]
    assert "2 of 4 photographs tell no patient, such as x; each counts as a patient of its own" in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING)
    assert patient_ids([Source("x"), Source("y")], FILE) == ["x", "y"]
    assert not caplog.records  # the index warns of that, whatever the dataset


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.booleans(),
)
def test_photographs_of_one_person_have_one_id(
    people: list[tuple[int, bool, bool]], same_names: bool
) -> None:
    """A person has one id in the column; names name the person, or the visit, of which there may be two."""
    sources = [
        Source(
            f"{place}",
            f"P{person}" if listed else "",
            "",
            f"{person}" if same_names else f"{person}.{second}",
        )
        for place, (person, listed, second) in enumerate(people)
    ]
    if not any(source.column for source in sources):
        return
    try:
        ids = patient_ids(sources, FILE)
    except UserError:
        return
    by_id, by_person = {}, {}
    for patient, (person, _, _) in zip(ids, people, strict=True):
        by_person.setdefault(person, set()).add(patient)
        by_id.setdefault(patient, set()).add(person)
    assert all(len(those) == 1 for those in by_id.values())
    if same_names:
        assert all(len(those) == 1 for those in by_person.values())


def test_missing_values_of_r_are_no_patient(tmp_path: Path) -> None:
    """As R writes a column with gaps: 2 of 3 people had the id NA, and all their eyes were one patient."""
    (tmp_path / "images").mkdir()
    lines = ["image,grade,patient"]
    for number, patient in enumerate(("NA", "NA", "17.0")):
        for side in ("left", "right"):
            (tmp_path / f"images/{number}_{side}.jpg").write_bytes(b"x")
            lines.append(f"{number}_{side},0,{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert Folder().read(tmp_path)["patient_id"].tolist() == ["0", "0", "1", "1", "17", "17"]


def test_unknown_patients_are_told_by_ids_that_never_repeat() -> None:
    index = pd.DataFrame({"patient_id": ["a", "b", "b"], "grade": [0, 1, None], "path": ["a", "b", "c"]})
    assert unknown(index)
    assert not unknown(index.assign(grade=0))
    assert not unknown(index.head(1))


def unnamed(names: list[str], subset: str = "grading") -> pd.DataFrame:
    """Photographs of a dataset that names no patients."""
    return pd.DataFrame({"patient_id": pd.array(names, "string"), "subset": subset})


def test_neighbouring_numbers_count_as_one_patient() -> None:
    names = [
        "B_train_IDRiD_001",
        "B_train_IDRiD_007",
        "B_train_IDRiD_008",
        "B_test_IDRiD_001",
        "a9",
        "a10",
        "x",
    ]
    masked = unnamed(["A_train_IDRiD_01", "A_train_IDRiD_02", "a10"], "segmentation")
    table = pd.concat([unnamed(names), masked], ignore_index=True)
    assert patients_by_number(table, 8, "idrid").tolist() == [
        "B_train_IDRiD_0-7", "B_train_IDRiD_0-7", "B_train_IDRiD_8-15", "B_test_IDRiD_0-7", "a8-15", "a8-15",
        "x", "A_train_IDRiD_01", "A_train_IDRiD_02", "a8-15",
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(["train_", "test_"]), st.integers(0, 400)), min_size=2, unique=True),
    st.integers(2, 20),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_blocks_are_of_equal_quotients_and_depend_on_no_other_photograph(
    photographs, size, digits, random
) -> None:
    table = unnamed([f"{part}{number:0{digits}}" for part, number in photographs])
    ids = patients_by_number(table, size, "d")
    blocks = [(part, number // size) for part, number in photographs]
    assert all((ids[a] == ids[b]) == (blocks[a] == blocks[b]) for a in table.index for b in table.index)
    kept = table.loc[random.sample(list(table.index), random.randint(1, len(table)))]
    assert patients_by_number(kept, size, "d").equals(ids[kept.index])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["17", "17", "18"],
            "the dataset names its patients, and 17 has several photographs; set it to null",
        ),
        (["left", "right"], "no graded photograph has a name that ends in a number; set it to null"),
    ],
)
def test_numbers_stand_in_for_unknown_patients_alone(names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=rf"^datasets\.mine\.numbers_per_patient: {says}$"):
        patients_by_number(unnamed(names), 8, "mine")

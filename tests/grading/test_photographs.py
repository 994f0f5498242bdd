"""Parts of the training patients: whole patients, alike in grades, whatever the order of the table."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.grading.photographs import Parts, part_numbers, parts_of


def table(patients: list[list[int]]) -> pd.DataFrame:
    """Photographs of patients, given the grades of each."""
    rows = [(f"p{patient}", grade) for patient, grades in enumerate(patients) for grade in grades]
    found = pd.DataFrame(rows, columns=["patient_id", "grade"]).astype({"grade": "Int8"})
    found["image_id"] = [f"i{n}" for n in range(len(found))]
    return found.assign(split="train", fold=pd.NA)


GRADE = st.integers(0, 4)
SEEDS = st.integers(0, 99)


@given(st.lists(st.lists(GRADE, min_size=1, max_size=3), min_size=2, max_size=25), SEEDS, st.data())
def test_parts_are_of_whole_patients_and_equally_large(patients, seed, data):
    parts = data.draw(st.integers(2, len(patients)))
    rows = table(patients)
    numbers = part_numbers(rows, parts, seed)
    assert (rows.assign(part=numbers).groupby("patient_id")["part"].nunique() == 1).all()
    sizes = np.bincount(rows.assign(part=numbers).drop_duplicates("patient_id")["part"], minlength=parts)
    assert len(sizes) == parts
    assert sizes.min() >= 1
    assert np.ptp(sizes) <= 1
    shuffled = rows.iloc[data.draw(st.permutations(range(len(rows))))]
    np.testing.assert_array_equal(part_numbers(shuffled, parts, seed), numbers[shuffled.index])


@given(st.lists(GRADE, min_size=6, max_size=40), st.integers(2, 6), SEEDS)
def test_each_part_has_its_share_of_each_grade(grades, parts, seed):
    """One photograph a patient: counts of a grade differ by one at most."""
    rows = table([[grade] for grade in grades])
    counts = pd.crosstab(rows["grade"].astype(int), part_numbers(rows, parts, seed))
    assert (np.ptp(counts.to_numpy(), axis=1) <= 1).all()


def test_the_seed_deals_patients_of_equal_grades():
    rows = table([[0]] * 30)
    found = {tuple(part_numbers(rows, 3, seed)) for seed in range(5)}
    assert len(found) == 5
    assert tuple(part_numbers(rows, 3, 0)) in found


def split_table() -> pd.DataFrame:
    """Ten training patients, two for validation and two for testing, both eyes of each."""
    rows = table([[n % 5, (n + n % 2) % 5] for n in range(14)])
    rows["split"] = ["train"] * 20 + ["val"] * 4 + ["test"] * 4
    return rows


def parts(part: tuple[int, int] | None, fraction: float = 1.0) -> Parts:
    return parts_of(split_table(), seed=3, fold=None, select="best", label_fraction=fraction, part=part)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_each_training_photograph_is_left_out_once(fraction):
    whole = parts(None, fraction)
    assert set(whole) == {"train", "val", "test"}
    assert (whole["train"]["patient_id"].nunique() == 10) == (fraction == 1)
    left_out = []
    for number in range(3):
        found = parts((number, 3), fraction)
        both = pd.concat([found["train"], found["left_out"]]).sort_index()
        pd.testing.assert_frame_equal(both, whole["train"])
        assert not set(found["train"]["patient_id"]) & set(found["left_out"]["patient_id"])
        for split in ("val", "test"):
            pd.testing.assert_frame_equal(found[split], whole[split])
        left_out.append(found["left_out"])
    pd.testing.assert_frame_equal(pd.concat(left_out).sort_index(), whole["train"])


@pytest.mark.parametrize("count", [1, 11])
def test_as_many_parts_as_there_are_patients_at_most(count):
    with pytest.raises(UserError) as error:
        parts((0, count))
    assert str(error.value) == (
        f"experiments.<name>.out_of_fold: 10 training patients cannot be divided into {count} parts; take "
        "from 2 parts to one for each patient"
    )
    assert len(parts((9, 10))["left_out"]) == 2

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from tests.splits.tables import make_table

from drgrade.splits.folds import deal

grade = st.one_of(st.none(), st.integers(0, 4))


def grouped(groups: list[tuple[int | None, ...]]) -> pd.DataFrame:
    return make_table(groups).rename(columns={"patient_id": "group"})


@given(st.lists(grade, min_size=1, max_size=60), st.integers(2, 6))
def test_single_photographs_are_dealt_out_in_turn(grades, folds) -> None:
    grades = sorted(grades, key=lambda one: -1 if one is None else one)
    names = [str(n) for n in range(len(grades))]
    found = deal(grouped([(one,) for one in grades]), names, folds)
    assert found == {name: n % folds for n, name in enumerate(names)}


@given(st.lists(st.tuples(grade, st.integers(1, 4)), min_size=1, max_size=40), st.integers(2, 6))
def test_folds_differ_by_at_most_a_group_in_each_grade(groups, folds) -> None:
    """If the photographs of each group have one grade."""
    table = grouped([(one,) * size for one, size in groups])
    names = [str(n) for n in range(len(groups))]
    found = deal(table, names, folds)
    assert set(found.values()) == set(range(min(folds, len(groups))))
    assert deal(table.sample(frac=1, random_state=0), names, folds) == found
    for one in {one for one, _ in groups}:
        held, sizes = [0] * folds, [size for other, size in groups if other == one]
        for name, (other, size) in zip(names, groups, strict=True):
            held[found[name]] += size if other == one else 0
        assert max(held) - min(held) <= max(sizes)


def test_blocks_with_stretches_of_grades_give_similar_folds() -> None:
    """As of IDRiD: 413 photographs in 52 blocks, where neighbours often have one grade."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        runs = np.repeat(rng.choice(5, 160, p=[0.32, 0.05, 0.33, 0.18, 0.12]), rng.integers(1, 6, 160))[:413]
        table = grouped([tuple(runs[start : start + 8].tolist()) for start in range(0, 413, 8)])
        fold = table["group"].map(deal(table, [str(n) for n in range(52)], 5))
        counts = pd.crosstab(table["grade"], fold)
        share = counts.div(counts.mean(axis=1), axis=0).drop(index=1)  # grade 1 is rare
        assert share.stack().between(2 / 3, 4 / 3).all()

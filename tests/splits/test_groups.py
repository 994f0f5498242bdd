import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from tests.splits.tables import hashed, make_table

from drgrade.splits.groups import linked_patients, split_groups

ties = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.booleans()), max_size=10)


@given(st.lists(st.integers(0, 6), min_size=12, max_size=12), ties, st.booleans())
def test_groups_are_what_patients_and_copies_tie_together(people, ties, look) -> None:
    table = hashed(pd.DataFrame({"image_id": map(str, range(12)), "patient_id": [f"p{n}" for n in people]}))
    table["sha256"] = pd.array([f"{n:064x}" for n in range(12)], dtype="string")
    for a, b, perceptual in ties:
        table.loc[b, "phash" if perceptual else "sha256"] = table["phash" if perceptual else "sha256"][a]
    alike = {(a, b) for a in range(12) for b in range(12) if table["patient_id"][a] == table["patient_id"][b]}
    alike |= {(a, b) for a in range(12) for b in range(12) if table["sha256"][a] == table["sha256"][b]}
    if look:
        alike |= {(a, b) for a in range(12) for b in range(12) if table["phash"][a] == table["phash"][b]}
    reach = {a: {a} for a in range(12)}
    for _ in range(12):
        reach = {a: {c for b in found for c in range(12) if (b, c) in alike} for a, found in reach.items()}
    groups = split_groups(table, 10 if look else None)
    assert linked_patients(table, 10 if look else None).tolist() == groups.tolist()
    assert groups.tolist() == [min(table["patient_id"][b] for b in reach[a]) for a in range(12)]


def test_missing_hashes_tie_nothing() -> None:
    table = make_table([(0,)] * 20)
    assert split_groups(table.assign(sha256=pd.NA), 10).nunique() == 20

"""Parts of a stage's work: who does which, and which are used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import UserError
from drgrade.parts import SINGLE_JOB, parts_folder, share


@given(st.integers(0, 60), st.integers(1, 12))
def test_every_item_has_one_job_and_all_jobs_have_as_many(count, jobs):
    items = list(range(count))
    shares = [share(items, (number, jobs)) for number in range(jobs)]
    assert sorted(item for one in shares for item in one) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert share(items, SINGLE_JOB) == items


@pytest.mark.parametrize(
    ("shard", "last"), [((2, 2), 1), ((-1, 3), 2), ((0, 0), 0)], ids=["too high", "negative", "none"]
)
def test_there_is_no_such_shard(shard, last):
    with pytest.raises(UserError, match=rf"^shard {shard[0]} of {shard[1]}: .* give one from 0 to {last}$"):
        share([1, 2, 3], shard)


def test_parts_of_the_same_work_are_kept_and_others_deleted(tmp_path):
    out = tmp_path / "stage" / "table.parquet"
    folder = parts_folder(out, ["params", "digest"])
    (folder / "part").touch()
    assert parts_folder(out, ["params", "digest"]) == folder
    assert (folder / "part").exists()
    assert parts_folder(out.with_name("other.parquet"), ["params"]) != folder
    assert (folder / "part").exists()
    other = parts_folder(out, ["params", "another digest"])
    assert list(folder.parent.iterdir()) == [other]
    assert not list(other.iterdir())

"""Files of the future get the present as their time, and keep their order."""

import os
import time

from hypothesis import given
from hypothesis import strategies as st

from drgrade import clock
from drgrade.clock import STAMP, bring_to_present

NOW = 1_700_000_000 * 10**9


@given(st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=6))
def test_the_order_stays_and_nothing_is_newer_than_now(tmp_path_factory, offsets):
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / str(number) for number in range(len(offsets))]
    for path, offset in zip(paths, offsets, strict=True):
        path.touch()
        os.utime(path, ns=(NOW + offset,) * 2)
    real, clock.time.time_ns = time.time_ns, lambda: NOW
    try:
        assert bring_to_present(paths) == sum(offset > 0 for offset in offsets)
        assert bring_to_present(paths) == 0
    finally:
        clock.time.time_ns = real
    times = [path.stat().st_mtime_ns for path in paths]
    assert max(times) <= NOW
    for path, offset in zip(paths, offsets, strict=True):
        if offset <= 0:
            assert path.stat().st_mtime_ns == NOW + offset
    seconds = [path.stat().st_mtime for path in paths]  # as Snakemake compares them
    recent = [number for number, offset in enumerate(offsets) if offset > 0 or offset < -(10**9)]
    for one in recent:
        for other in recent:
            assert (seconds[one] < seconds[other]) == (offsets[one] < offsets[other])


def test_of_a_folder_the_stamp_counts_and_what_is_missing_does_not(tmp_path):
    tomorrow = time.time_ns() + 86_400 * 10**9
    stamped, plain = tmp_path / "stamped", tmp_path / "plain"
    for folder in (stamped, plain):
        folder.mkdir()
    (stamped / STAMP).touch()
    for path in (stamped / STAMP, stamped, plain):
        os.utime(path, ns=(tomorrow, tomorrow))
    assert bring_to_present([stamped, plain, tmp_path / "gone"]) == 2
    assert stamped.stat().st_mtime_ns == tomorrow
    assert max((stamped / STAMP).stat().st_mtime_ns, plain.stat().st_mtime_ns) <= time.time_ns()

"""The benchmark of scale runs at toy size, and its verdict depends on each of its three limits."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks import scale

COUNTS = [10, 100, 1000]


def rows(*cpu: float, gb: float = 1.0, jobs: tuple[int, ...] = (7, 7, 7)) -> list[dict[str, Any]]:
    return [{"cpu": spent, "gb": gb, "jobs": planned} for spent, planned in zip(cpu, jobs, strict=True)]


def test_linear_growth_holds() -> None:
    found = scale.verdict({"index": rows(1, 10, 100), "jobs": rows(1, 1, 1)}, COUNTS)
    assert found["holds"]
    assert (found["value"], found["baseline"], found["ratio"], found["jobs"]) == (10, 10, 1, [7, 7, 7])


@pytest.mark.parametrize(
    "found",
    [
        {"index": rows(1, 1, 1), "overlaps": rows(1, 10, 160)},
        {"index": rows(1, 10, 100, gb=8.1)},
        {"jobs": rows(1, 1, 1, jobs=(7, 7, 8))},
    ],
)
def test_growth_memory_and_jobs_each_break_it(found: dict[str, list[dict[str, Any]]]) -> None:
    assert not scale.verdict(found, COUNTS)["holds"]


def test_the_steps_run_on_synthetic_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the evaluation, whose figures take longest, and the jobs, which a page's test plans."""
    monkeypatch.setenv("DRGRADE_TRACKING", "off")
    for step in list(scale.STEPS)[:-2]:
        scale.prepare(step, tmp_path, 400)
        assert scale.measure(step, tmp_path)["gb"] > 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"overlaps.json", "lesions.parquet", "patches.pkl", "predictions.parquet"}
    assert (tmp_path / "calibration.json").stat().st_size > 1000

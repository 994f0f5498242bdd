"""What Snakemake prints: a line when a job starts, one when it ends."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_drgrade import TAIL, JobLines, tail

NOON = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))


def record(
    event: LogEvent | None, message: str = "", at: float = 0, level: int = logging.INFO, **values: Any
):
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    made.created = NOON + at
    made.__dict__.update(values, event=event)
    return made


def job(number: int, log: list[str], **values: Any) -> dict[str, Any]:
    same = {"jobid": number, "rule_name": "crop", "rule_msg": f"Crop part {number}", "log": log, "output": []}
    return same | values


@pytest.fixture
def lines() -> JobLines:
    """A run of three jobs, the first of them started."""
    lines = JobLines()
    assert lines.format(record(LogEvent.RUN_INFO, "Job stats: ...", stats={"total": 3})) == "3 jobs"
    lines.format(record(LogEvent.JOB_INFO, **job(7, ["logs/crop.log"])))
    return lines


def test_a_job_is_a_line_when_it_starts_and_one_when_it_ends(lines: JobLines) -> None:
    started = lines.format(record(LogEvent.JOB_INFO, at=1, **job(8, ["logs/crop8.log"])))
    assert started == "12:00:01  crop            Crop part 8 (log: logs/crop8.log)"
    ended = lines.format(record(LogEvent.JOB_FINISHED, "Finished jobid: 7", at=65, job_id=7))
    assert ended == "12:01:05  crop            Crop part 7: done in 65 s, 1 of 3 jobs"


def test_a_job_that_only_names_others_is_counted_and_not_shown(lines: JobLines) -> None:
    assert lines.format(record(LogEvent.JOB_INFO, **job(0, []))) == ""
    assert lines.format(record(LogEvent.JOB_FINISHED, job_id=0)) == ""
    assert "2 of 3 jobs" in lines.format(record(LogEvent.JOB_FINISHED, job_id=7))


def test_a_failed_job_shows_the_end_of_its_log(lines: JobLines, tmp_path: Path) -> None:
    log = tmp_path / "crop.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    why = {"rule_msg": "the cluster is full"}
    error = record(LogEvent.JOB_ERROR, at=3, level=logging.ERROR, **job(7, [str(log)], **why))
    first, *rest = lines.format(error).splitlines()
    assert first == f"12:00:03  crop            FAILED after 3 s; the end of {log}:"
    assert rest == [f"    line {number}" for number in range(100 - TAIL, 100)] + ["    the cluster is full"]


def test_a_log_that_is_empty_or_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.log").touch()
    assert tail(str(tmp_path / "empty.log")) == ["(the log is empty)"]
    assert tail(str(tmp_path / "missing.log")) == ["(no log)"]


def test_commands_and_chatter_are_left_out_but_warnings_are_not(lines: JobLines) -> None:
    assert lines.format(record(None, "Select jobs to execute...")) == ""
    assert lines.format(record(LogEvent.PROGRESS, done=1, total=3)) == ""
    for said in ("Nothing to be done.", "Lints for rule crop: no log"):
        assert lines.format(record(None, said)) == said
    assert lines.format(record(None, "Disk full", level=logging.ERROR)) == "Disk full"
    # asked for with --printshellcmds, it is shown
    assert lines.format(record(LogEvent.SHELLCMD, shellcmd="drgrade crop")).strip() == "drgrade crop"

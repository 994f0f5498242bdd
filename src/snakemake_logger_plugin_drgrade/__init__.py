"""Snakemake's console output with one line per job: time, stage, description, duration and log file.

Snakemake finds this package by its name (``logger: drgrade`` in ``profiles/default``). Commands are the first
line of each job's log; ``--printshellcmds`` shows them here too. Dry runs and ``--verbose`` print Snakemake's
own output.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

TAIL = 20
"""Lines of a failed job's log that are shown."""
CHATTER = (
    "Assuming unrestricted shared", "Building DAG", "Using shell", "Provided cores", "Provided resources",
    "Rules claiming more", "Singularity containers", "Conda environments", "Select jobs", "Execute ", "host:",
    "Removing temporary output", "Touching output", "Updating job",
)  # fmt: skip
"""First words of messages that are not shown, as they appear in every run."""
LEFT_OUT = (LogEvent.PROGRESS, LogEvent.JOB_STARTED, LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO)
"""Events that are not shown."""


def tail(path: str, lines: int = TAIL) -> list[str]:
    """The last lines of a text file; a line that says so if there is none."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ["(no log)"]
    return text.splitlines()[-lines:] or ["(the log is empty)"]


class JobLines(DefaultFormatter):
    """Formats Snakemake's events: a line when a job starts, one when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, dict[str, Any]] = {}
        self.done = 0
        self.total = 0

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several for a failed job; empty for events that are not shown."""
        event = getattr(record, "event", None)
        values = record.__dict__
        if event == LogEvent.RUN_INFO:
            self.total = values.get("stats", {}).get("total", 0)
            return f"{self.total} jobs"
        if event == LogEvent.JOB_INFO:
            return self._started(values)
        if event == LogEvent.JOB_FINISHED:
            return self._finished(values)
        if event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR):
            failed = [values] if event == LogEvent.JOB_ERROR else values["job_error_info"]
            return "\n".join(line for job in failed for line in self._failed(job, record.created))
        if event == LogEvent.SHELLCMD:
            return f"          {values.get('shellcmd') or ''}".rstrip()
        if event in LEFT_OUT or record.getMessage().startswith(CHATTER):
            return ""
        return super().format(record)

    def _started(self, job: dict[str, Any]) -> str:
        self.jobs[job["jobid"]] = job
        if not job["log"]:  # a rule that only collects other rules' outputs
            return ""
        return _line(job["created"], job["rule_name"], f"{_what(job)} (log: {job['log'][0]})")

    def _finished(self, values: dict[str, Any]) -> str:
        job = self.jobs.pop(values["job_id"], None)
        self.done += 1
        if job is None or not job["log"]:
            return ""
        seconds = values["created"] - job["created"]
        done = f"done in {seconds:.0f} s, {self.done} of {self.total} jobs"
        return _line(values["created"], job["rule_name"], f"{_what(job)}: {done}")

    def _failed(self, job: dict[str, Any], now: float) -> list[str]:
        started = self.jobs.pop(job["jobid"], None)
        after = f" after {now - started['created']:.0f} s" if started else ""
        logs = job["log"]
        first = _line(now, job["rule_name"], f"FAILED{after}; the end of {', '.join(logs) or 'its log'}:")
        rest = [line for path in logs for line in tail(path)]
        rest += (job.get("rule_msg") or "").splitlines()  # such as a cluster's message
        return [first, *(f"    {line}" for line in rest)]


def _what(job: dict[str, Any]) -> str:
    """The rule's message, or its output files if it has none."""
    return str(job["rule_msg"] or ", ".join(job["output"]))


def _line(moment: float, rule: str, text: str) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(moment))}  {rule:<14}  {text}"


class LogHandler(LogHandlerBase, ColorizingTextHandler):  # type: ignore[misc]
    """Writes :class:`JobLines` to stderr, or what Snakemake always prints for dry runs and ``--verbose``."""

    writes_to_stream = True
    writes_to_file = False  # Snakemake's own log in .snakemake/log is not affected
    has_filter = False  # Snakemake filters by --quiet
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        ColorizingTextHandler.__init__(self, nocolor=settings.nocolor, stream=stream)
        if settings.dryrun or settings.verbose:
            self.setFormatter(DefaultFormatter(settings.quiet, settings.show_failed_logs))
        else:
            self.setFormatter(JobLines())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless its text is empty."""
        if not isinstance(self.formatter, JobLines):
            ColorizingTextHandler.emit(self, record)
        elif text := self.format(record):
            self.stream.write(self.decorate(record, text) + "\n")
            self.flush()

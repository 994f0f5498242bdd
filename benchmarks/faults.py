"""A pipeline that is killed again and again ends with the bytes of one that nothing disturbed.

    uv run python benchmarks/faults.py [--kills 25] [--seed 0] [--folder FOLDER]

The whole pipeline runs on a tiny painted dataset, once undisturbed and once with kills (SIGKILL): one in each
job, at a random moment after its log file has appeared, and more in the longest ones. After each kill the
same command is started again, with nothing done by hand. What is killed, in turn:

    all     every process of the run, as when the machine stops
    main    Snakemake alone: its jobs work on, and the next run must refuse to start beside them, and name
            them; they are killed, as its message says, and the command is given again
    job     one job alone, as when memory runs out: Snakemake reports it and ends

The two runs use other numbers of ``--cores``. In the end every file below ``results/`` is compared by its
SHA-256, except those that hold times. The last line is one JSON object; its value is the number of files that
differ.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipeline import fork_server  # noqa: E402
from tests.pipeline.conftest import Project, start  # noqa: E402

from drgrade.files import sha256  # noqa: E402
from drgrade.run_lock import JOB_LOCKS, RUN_LOCK  # noqa: E402

TIMED = {"cost.json", "costs.csv", "leaderboard.md", "leaderboard.html", ".snakemake_timestamp"}
"""Files that say how long something took, which DVC does not record either."""
LONGEST_WAIT = 540.0
"""Seconds."""
SNAKEMAKE = ("snakemake", "--resources", "gpu=1", "--cores")
KINDS = ("all", "main", "job")
EPOCHS = {"detector": 2, "segmentation": 2, "pretrain.lesion_contrastive": 3, "grade": 3}
"""Epochs of the trainings: more than one, so that they leave checkpoints to go on from."""


def launch(project: Project, *command: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a command in the project's folder, as :meth:`Project.run` does, and return at once.

    Args:
        project: whose folder and code are used.
        command: program and arguments.
        output: file for what it prints, which is replaced.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("DRGRADE", "MLFLOW"))}
    variables |= {"PYTHONPATH": str(project.folder / "src"), "DRGRADE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command_line, variables = fork_server.client(command, variables)
    with output.open("wb") as file:
        return subprocess.Popen(
            command_line, cwd=project.folder, env=variables, stdout=file, stderr=subprocess.STDOUT
        )


def processes(folder: Path) -> list[psutil.Process]:
    """All processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, FileNotFoundError):
            continue
    return found


def kill_all(folder: Path) -> None:
    """Kill every process that works in a folder."""
    while left := processes(folder):
        for process in left:
            kill(process.pid)
        psutil.wait_procs(left, timeout=1)


def kill(pid: int) -> None:
    """Kill a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main_process(project: Project) -> int:
    """The process of Snakemake that holds the folder."""
    return int((project.folder / RUN_LOCK).read_text().split()[1])


def jobs(project: Project) -> list[int]:
    """Processes of the jobs at work."""
    files = sorted((project.folder / JOB_LOCKS).glob("*"))
    # an empty file is not locked yet
    return [int(path.name.rpartition("-")[2]) for path in files if path.exists() and path.stat().st_size]


def digests(project: Project) -> dict[str, str]:
    """SHA-256 of each file below ``results/`` by its path, except files that hold times."""
    files = sorted(path for path in (project.folder / "results").rglob("*") if path.is_file())
    return {str(path.relative_to(project.folder)): sha256(path) for path in files if path.name not in TIMED}


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Paths whose digests differ, or which only one run has."""
    return sorted(path for path in first.keys() | second if first.get(path) != second.get(path))


def wait_for(condition: Callable[[], bool], run: subprocess.Popen[bytes]) -> bool:
    """Wait until a condition holds; False if the run ended before."""
    until = time.monotonic() + LONGEST_WAIT
    while run.poll() is None:
        if condition():
            return True
        if time.monotonic() > until:
            raise TimeoutError(f"{run.args}: not there after {LONGEST_WAIT:.0f} s")
        time.sleep(0.02)
    return False


def stages(log: str) -> list[tuple[str, float]]:
    """The jobs of a run in the order of their start: log file, and how many seconds it took."""
    ended = re.findall(r"^\S+  \S+ +(.+): done in (\d+) s", log, re.M)
    seconds = {what: float(number) for what, number in ended}
    started = re.findall(r"^\S+  \S+ +(.+) \(log: (\S+)\)", log, re.M)
    return [(path, seconds[what] + 1) for what, path in started]


class Killed:
    """A project whose run is killed and started again.

    Args:
        project: a checkout.
        command: what is started each time.
    """

    def __init__(self, project: Project, command: Sequence[str]) -> None:
        self.project, self.command = project, command
        self.output = project.folder.with_name(f"{project.folder.name}.log")

    def run(self) -> subprocess.Popen[bytes]:
        """Start the run."""
        return launch(self.project, *self.command, output=self.output)

    def kill(self, logs: Sequence[str], share: float, seconds: Sequence[float], kind: str) -> tuple[str, str]:
        """Start the run, and kill it after the log file of one of some jobs has appeared.

        Args:
            logs: log files.
            share: when to kill, as a share of the time that the job is expected to take.
            seconds: these times.
            kind: one of :data:`KINDS`.

        Returns:
            The log file, and what was left; two empty strings if the run ended before.
        """
        began, new = time.time(), []

        def starts() -> bool:
            paths = [self.project.folder / log for log in logs]
            new[:] = [
                place for place, path in enumerate(paths) if path.exists() and path.stat().st_mtime >= began
            ]
            return bool(new)

        run = self.run()
        if wait_for(starts, run):
            until, done = time.monotonic() + share * seconds[new[0]], self._done()
            # on a machine that is faster now than it was in the undisturbed run the job may end before
            wait_for(lambda: time.monotonic() > until or self._done() > done, run)
        if kind == "job":
            wait_for(lambda: bool(jobs(self.project)), run)
        if run.poll() is not None:
            self._ended(run)
            return "", ""
        if kind == "all":
            kill_all(self.project.folder)
        else:
            kill(main_process(self.project) if kind == "main" else jobs(self.project)[0])
        run.wait(LONGEST_WAIT)
        orphans = self._end_orphans() if kind == "main" else []
        return logs[new[0]], ", ".join(orphans + self._left()) or "nothing"

    def _done(self) -> int:
        """Number of jobs that the run has done."""
        return self.output.read_text().count(": done in ")

    def _ended(self, run: subprocess.Popen[bytes]) -> None:
        assert run.wait() == 0, self.output.read_text()[-3000:]

    def _end_orphans(self) -> list[str]:
        """End the jobs of a run whose main process is gone, as the message of the next run says."""
        for pid in jobs(self.project):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # or they might end before that run looks for them
        at_work = jobs(self.project)
        if not at_work:
            return []
        refused = self.run()
        assert refused.wait(LONGEST_WAIT) != 0, at_work
        named = re.search(r"end them with `kill ([\d ]+)`", self.output.read_text())
        assert named, self.output.read_text()[-3000:]
        pids = [int(pid) for pid in named[1].split()]
        assert sorted(pids) == sorted(at_work)
        for pid in pids:
            kill(pid)
        return [f"{len(pids)} jobs at work: refused"]

    def _left(self) -> list[str]:
        """Count what a kill left, by kind."""
        kinds = (
            ("marked as incomplete", ".snakemake/incomplete", "*"), ("half-written", "results", "*.partial*"),
            ("checkpoints", ".cache/drgrade", "*.ckpt"), ("checkpoints", ".cache/drgrade", "*.pth"),
        )  # fmt: skip
        found = [
            (sum(path.is_file() for path in (self.project.folder / folder).rglob(pattern)), what)
            for what, folder, pattern in kinds
        ]
        return [f"{number} {what}" for number, what in found if number]

    def finish(self) -> None:
        """Let the run come to its end."""
        self._ended(self.run())


def chosen(seconds: Sequence[float], kills: int) -> list[int]:
    """Places of the jobs to kill, in order: each once, then the longest again; or only the longest."""
    longest = sorted(range(len(seconds)), key=lambda place: -seconds[place])
    return sorted(islice(cycle(longest), kills))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in; a temporary one by default")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp())).resolve()
    os.environ[fork_server.ADDRESS] = f"{tempfile.mkdtemp()}/socket"
    server = fork_server.start(os.environ[fork_server.ADDRESS])
    try:
        answer = compare(folder, arguments.kills, arguments.seed)
    finally:
        kill_all(folder)
        server.communicate()
    print(json.dumps(answer))


def compare(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Run both pipelines below a folder, print a line a kill; return the benchmark's answer."""
    undisturbed, killed = (
        Killed(start(folder / name), (*SNAKEMAKE, cores))
        for name, cores in (("undisturbed", "2"), ("killed", "3"))
    )
    for one in (undisturbed, killed):
        one.project.edit({f"{stage}.epochs": epochs for stage, epochs in EPOCHS.items()})
    undisturbed.finish()
    logs, seconds = zip(*stages(undisturbed.output.read_text()), strict=True)
    random, kinds = np.random.default_rng(seed), cycle(KINDS)
    print("| kill | stage | at, share of its time | killed | left |\n|---|---|---|---|---|")
    hits = 0
    for number, place in enumerate(chosen(seconds, kills), 1):
        share, kind = float(random.uniform()), next(kinds)
        log, left = killed.kill(logs[place:], share, seconds[place:], kind)
        hits += bool(log)
        stage = log.removeprefix("logs/").removesuffix(".log") or "none, it had ended"
        print(f"| {number} | {stage} | {share:.2f} | {kind} | {left} |", flush=True)
    killed.finish()
    first, second = digests(undisturbed.project), digests(killed.project)
    wrong = differing(first, second)
    print(f"{hits} kills; {len(first)} files, {len(wrong)} differ", *wrong, sep="\n")
    return {
        "name": "faults", "value": len(wrong), "unit": "files", "baseline": len(first),
        "ratio": len(wrong) / len(first), "target": 0, "holds": not wrong and hits > 0,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Run a check on many hostile inputs in a process of its own, so that a crash is one failed test."""

import itertools
import multiprocessing
import os
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

SECONDS = 20
"""Processor time that one input may take; far above what any needs, so that a busy machine is no hang."""
MEMORY = 2 << 30
"""Bytes of address space that the process may add to those it starts with."""
CHATTER = 2000
"""Bytes that C libraries may print about one input, such as libtiff; more would fill the log of a job."""

Case = Callable[[int], bytes]
Check = Callable[[bytes], str]


def survive(case: Case, check: Check, count: int, folder: Path) -> Counter[str]:
    """Check ``count`` inputs in a child process with limited memory and time.

    Args:
        case: makes an input from its number, and always the same one.
        check: returns what became of an input, in a word or two; raises if that was wrong.
        count: number of inputs.
        folder: where the input that fails is saved.

    Returns:
        How many inputs had each outcome.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of other tests' threads
    number = context.Value("q", -1)
    ours, theirs = context.Pipe(duplex=False)
    errors = folder / "stderr.txt"
    child = context.Process(target=_run, args=(case, check, count, number, theirs, errors))
    child.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:  # killed before it could answer
        child.join()
        answer = f"killed by {signal.Signals(-child.exitcode).name}" if child.exitcode < 0 else "ended early"
    child.join()
    if not isinstance(answer, Counter):
        saved, told = folder / "input", errors.read_text(errors="replace")[-2000:]
        saved.write_bytes(case(number.value))
        pytest.fail(f"input {number.value} of {case}, saved as {saved}: {answer}\n{told}")
    return answer


def _run(case: Case, check: Check, count: int, number, answer: Connection, errors: Path) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    warnings.simplefilter("ignore")  # Python's own, which a job prints once each
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcomes: Counter[str] = Counter()
    try:
        for number.value in itertools.islice(itertools.count(), count):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process, also inside C code
            before = os.fstat(2).st_size
            outcomes[check(case(number.value))] += 1
            assert os.fstat(2).st_size - before <= CHATTER
    except BaseException:
        answer.send(traceback.format_exc())
    else:
        answer.send(outcomes)


def one_line(reason: str, longest: int = 400, *, memory: bool = False) -> None:
    """Assert that a reason for refusing an input fits into a line of a table.

    Args:
        reason: the line.
        longest: maximum number of its characters.
        memory: it may be that there is not enough memory.
    """
    assert reason.strip()
    assert reason.isprintable(), ascii(reason)
    assert len(reason) <= longest, reason
    assert memory or "memory" not in reason.lower(), reason

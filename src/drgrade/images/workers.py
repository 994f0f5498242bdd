"""Process many photographs in parallel."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from drgrade.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield results of ``work`` in the order of ``items``; few are queued, so memory use is bounded.

    Args:
        work: a picklable function of one item.
        items: arguments of ``work``; chunks of several photographs reduce the overhead between processes.
        workers: number of processes; with 1, work runs in this process.

    Raises:
        UserError: a worker was killed.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
    waiting: deque[Future[Result]] = deque()
    try:
        with ProcessPoolExecutor(workers, context, _begin) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker died, most likely out of memory; run it with fewer cores") from None


def _begin() -> None:
    """Start a worker, with one thread in OpenCV; it ends with the process it works for, even a killed one.

    Otherwise it would finish the items in the queue, beside the next run, and then wait for more, for ever.
    """
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)

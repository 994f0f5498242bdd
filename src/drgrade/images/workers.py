"""Work on many photographs side by side."""

import multiprocessing
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
    """Results of ``work`` in the order of ``items``, few of them waiting: memory does not grow with the data.

    Args:
        work: can be pickled; its result does not depend on what else runs.
        items: what to work on; chunks of some tens of photographs pay for their way between processes.
        workers: processes; one works here, without starting any.

    Raises:
        UserError: a worker was killed.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads half alive
    waiting: deque[Future[Result]] = deque()
    try:
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker died, most likely out of memory; run it with fewer cores") from None

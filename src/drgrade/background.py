"""Background threads that prepare data while the device computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    make: Callable[[T], R], items: Iterable[T], *, threads: int = 1, depth: int = 2
) -> Iterator[R]:
    """Yield ``make(item)`` for each item in order, computed in the background up to ``depth`` items ahead.

    An error in ``make`` is raised when its item is reached. The threads end with the iteration.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(make, item) for item in islice(source, depth))
        try:
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, item) for item in islice(source, 1))
                yield made
        finally:
            for future in waiting:
                future.cancel()

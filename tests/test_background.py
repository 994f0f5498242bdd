import threading
from collections.abc import Iterator

import pytest

from drgrade.background import read_ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_ahead_keeps_the_order_and_passes_errors_on(threads):
    makers, received = set(), []

    def make(number: int) -> int:
        makers.add(threading.get_ident())
        if number == 7:
            raise OSError("disk gone")
        return number * number

    with pytest.raises(OSError, match="disk gone"):
        received.extend(read_ahead(make, range(9), threads=threads, depth=4))
    assert received == [number * number for number in range(7)]
    assert threading.get_ident() not in makers


def test_no_more_is_read_ahead_than_asked_for():
    made: list[int] = []
    enough = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if len(made) == 4:
            enough.set()
        return number

    reading: Iterator[int] = read_ahead(make, range(100), depth=3)
    assert next(reading) == 0
    assert enough.wait(30)
    reading.close()  # type: ignore[attr-defined]
    assert made == [0, 1, 2, 3]

"""What is done later: in order, whatever one of the calls raises, by one thread."""

from __future__ import annotations

import queue
import threading

from pagepool.node.later import Later

_TIMEOUT_S = 60.0


def test_calls_come_in_order_and_go_on_after_one_that_fails() -> None:
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def call(number: int) -> None:
        done.put(number)
        if number == 1:
            raise OSError("this one fails")

    later = Later(0.01, call)
    for number in range(4):
        later.put(number)
    assert [done.get(timeout=_TIMEOUT_S) for _ in range(4)] == [0, 1, 2, 3]


def test_what_waits_takes_one_thread() -> None:
    before = threading.active_count()
    later = Later(3600.0, print)
    for number in range(100):
        later.put(number)
    assert threading.active_count() <= before + 1

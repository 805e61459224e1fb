"""One fetch for all, and who is let go of."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from pagepool.node.lazy.waiting import SingleFlight, Waiting, is_killed


def test_single_flight() -> None:
    """Those who come meanwhile get the same; those who come later do it again."""
    flights, begun, go = SingleFlight(), Event(), Event()
    calls: list[bytes] = []

    def work(key: bytes) -> bool:
        calls.append(key)
        begun.set()
        assert go.wait(60)
        return True

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(flights.do, b"a", work)
        assert begun.wait(60)
        others = [pool.submit(flights.do, b"a", work) for _ in range(7)]
        go.set()
        assert first.result(60)
        assert all(other.result(60) for other in others)
    assert flights.do(b"a", work)
    assert 2 <= len(calls) <= 9  # who comes after the landing does it himself


def test_single_flight_fails_for_all() -> None:
    """An error is everybody's; it is not remembered."""
    flights = SingleFlight()

    def work(_key: bytes) -> bool:
        raise OSError(5, "no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            flights.do(b"a", work)
    assert flights.do(b"a", lambda _: True)


def test_killed() -> None:
    """A process that got a signal it handles is not killed."""
    assert not is_killed(os.getpid())
    assert not is_killed(2**22 + 1)


def test_signals_that_do_not_kill() -> None:
    """Whoever merely got a signal is waited for; the answer is the caller's."""
    given: list[int] = []
    waiting = Waiting(given.append)
    waiting.interrupt(7)  # before it has begun
    waiting.begin(7, os.getpid())
    waiting.interrupt(7)
    assert waiting.take(7)
    assert not waiting.take(7)
    assert given == []


def test_early_interrupt_of_a_killed_process() -> None:
    """An INTERRUPT may be read before the request that it is about has begun; a stopped process stays killed."""
    ended = Event()
    process = subprocess.Popen(["sleep", "60"])
    try:
        waiting = Waiting(lambda unique: ended.set() if unique == 9 else None)
        waiting.interrupt(9)
        waiting.begin(9, process.pid)
        assert not ended.is_set()
        assert waiting.take(9)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

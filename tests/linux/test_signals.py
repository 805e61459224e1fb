"""Signals that are read as bytes: none is missed, whichever thread the kernel gives it to."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pagepool.container.attending import watch_signals
from pagepool.linux.signals import Signals, heeded, set_soon

BOTH = (signal.SIGUSR1, signal.SIGUSR2)


def test_one_that_another_thread_was_given() -> None:
    """Python runs no handler before the main thread runs Python, which it does not while it waits."""
    waits, done = threading.Event(), threading.Event()

    def take() -> None:
        waits.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        done.wait()

    thread = threading.Thread(target=take)
    thread.start()
    with Signals(BOTH) as signals:
        waits.set()
        assert signals.wait() == [signal.SIGUSR1]
    done.set()
    thread.join()


def test_those_that_came_before_anybody_waited() -> None:
    with Signals(BOTH) as signals:
        for number in (*BOTH, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert signals.wait() == [*BOTH, signal.SIGUSR1]
        assert signals.wait(0) == []


def test_others_are_not_taken() -> None:
    """Python has one such place for all signals that have handlers."""
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
    try:
        with Signals((signal.SIGUSR1,)) as signals:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert signals.wait() == []
        assert seen == [1]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_they_are_given_back() -> None:
    handlers = [signal.getsignal(number) for number in BOTH]
    with Signals(BOTH):
        assert [signal.getsignal(number) for number in BOTH] != handlers
    assert [signal.getsignal(number) for number in BOTH] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_it_is_woken_and_never_afterwards() -> None:
    with Signals(BOTH) as signals:
        thread = threading.Thread(target=signals.wake)
        thread.start()
        assert signals.wait() == []
        thread.join()
    # Its descriptors may belong to others by now.
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        signals.wake()
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


def test_more_than_the_pipe_holds() -> None:
    with Signals(BOTH) as signals:
        for _ in range(1 << 17):
            signals.wake()
        assert signals.wait() == []


def test_elsewhere_than_in_the_main_thread() -> None:
    found = []

    def use() -> None:
        with Signals(BOTH) as signals:
            found.append(signals.wait(0))

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [[]]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_an_event_is_set_by_a_handler_of_one_who_waits_for_it() -> None:
    """It may interrupt code that has the lock of the event: setting it there would wait for ever."""
    event = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: set_soon(event))
    try:
        with vars(event)["_cond"]:  # as inside of `wait`
            signal.raise_signal(signal.SIGUSR1)
        assert event.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_nohup_has_ignored_stays_so() -> None:
    """Also in who takes that signal else: a container that `nohup pagepool run` runs outlives the terminal."""
    wanted = (signal.SIGTERM, signal.SIGHUP)
    assert heeded(wanted) == wanted
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert heeded(wanted) == (signal.SIGTERM,)
        with watch_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

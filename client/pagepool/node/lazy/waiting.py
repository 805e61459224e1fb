"""Requests that take long: one fetch for all who want the same, and letting go of those whose process was killed.

The kernel tells by INTERRUPT that somebody who waits has got a signal, any signal, and tells it once. Most signals
must not end a request: overlayfs would take EINTR for "not in this layer", and a program that merely got SIGURG while
it opened a file would be told EIO. So whoever got one is looked at, for as long as it waits, until it has been killed.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EARLY_KEPT: Final = 1024
_LOOK_S: Final = 0.1
_PENDING: Final = re.compile(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", re.MULTILINE)
_SIGKILL_BIT: Final = 1 << 8


class SingleFlight:
    """Does the same thing once for all who ask for it at the same time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._flights: dict[bytes, Future[bool]] = {}

    def do(self, key: bytes, work: Callable[[bytes], bool]) -> bool:
        """Call `work`, or wait for who is just doing that, and return (or raise) what came of it."""
        with self._lock:
            flight = self._flights.get(key)
            ours = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not ours:
            return flight.result()
        try:
            result = work(key)
        except BaseException as error:
            self._land(key)
            flight.set_exception(error)
            raise
        self._land(key)
        flight.set_result(result)
        return result

    def _land(self, key: bytes) -> None:
        with self._lock:
            del self._flights[key]


class Waiting:
    """The requests under way that may be given up. Thread-safe.

    Args:
        give_up: answers a request whose process was killed.
    """

    def __init__(self, give_up: Callable[[int], None]) -> None:
        self._give_up = give_up
        self._processes: dict[int, int] = {}
        self._early: OrderedDict[int, None] = OrderedDict()
        self._changed = Condition()
        self._signalled: set[int] = set()
        self._watching = False

    def begin(self, unique: int, process: int) -> None:
        """A request begins.

        Args:
            process: the thread that waits for it; 0 if nobody can tell.
        """
        self._processes[unique] = process
        if unique in self._early:
            self._watch(unique)

    def take(self, unique: int) -> bool:
        """Whether it is the caller who is to answer a request: True once. Atomic, since a dictionary's `pop` is."""
        return self._processes.pop(unique, None) is not None

    def interrupt(self, unique: int) -> None:
        """Somebody who waits for a request has got a signal."""
        # Remembered: it may be a request that another thread has taken from the kernel and not begun.
        with self._changed:
            self._early[unique] = None
            if len(self._early) > _EARLY_KEPT:
                self._early.popitem(last=False)
        if unique in self._processes:
            self._watch(unique)

    def _watch(self, unique: int) -> None:
        with self._changed:
            self._signalled.add(unique)
            if self._watching:
                return
            self._watching = True
        Thread(target=self._look, name="lazy-killed", daemon=True).start()

    def _look(self) -> None:
        """Look at those who got a signal, until there are none any more."""
        while True:
            with self._changed:
                self._signalled = {unique for unique in self._signalled if unique in self._processes}
                if not self._signalled:
                    self._watching = False
                    return
                signalled = list(self._signalled)
            for unique in signalled:
                process = self._processes.get(unique)
                if process and is_killed(process) and self.take(unique):
                    self._give_up(unique)
            with self._changed:
                self._changed.wait(_LOOK_S)


def is_killed(process: int) -> bool:
    """Whether a thread has been sent a signal that will end it; the kernel turns every such signal into SIGKILL."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    return any(int(mask, 16) & _SIGKILL_BIT for mask in _PENDING.findall(status))

"""Signals of this process as bytes that can be read: `Signals`; what handlers may do: `set_soon`; names: `find_signal`.

Python runs a handler in the main thread, once that runs Python. One that waits for a lock, or is about to, need not
notice: the kernel may have given the signal to another thread, or to this one a moment too early. The byte that Python
writes for each signal cannot be missed, whichever thread it was given to. So whoever waits for signals reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_ONCE: Final = 256
_WOKEN: Final = b"\0"
_REAL_TIME: Final = {"RTMIN+": (int(signal.SIGRTMIN), 1), "RTMAX-": (int(signal.SIGRTMAX), -1)}
"""Before a distance: from which signal, and in which direction."""


def find_signal(text: str) -> int:
    """The number of a signal by its name, with or without SIG, or by its number; 0 if it is none.

    Real-time signals have names only as a distance from the first or the last of them: ``RTMIN+3``, ``RTMAX-1``.
    """
    name = text.upper().removeprefix("SIG")
    found = getattr(signal, f"SIG{name}", None)
    if isinstance(found, signal.Signals):
        return int(found)
    start, direction = _REAL_TIME.get(name[:6], (0, 1))
    digits = name[6:] if start else name
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 2):
        return 0
    number = start + direction * int(digits)
    return number if (signal.SIGRTMIN if start else 1) <= number < signal.NSIG else 0


def heeded(numbers: Iterable[signal.Signals]) -> tuple[signal.Signals, ...]:
    """Of signals that a program would take, those that it should: SIGHUP stays ignored for who was started by nohup."""
    return tuple(one for one in numbers if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN)


@contextlib.contextmanager
def blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Keep signals waiting in this thread, and in a program that it starts or becomes: see `Signals.let_in`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """Takes signals for as long as it is entered, and gives them back afterwards.

    Python has one place where such bytes go, and only the main thread may set it: elsewhere nothing is taken, and
    nothing comes but what `wake` says. `reading` is a descriptor to wait for beside others.

    Args:
        numbers: the signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self.reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()
        self._undo.callback(os.close, self.reading)
        self._undo.callback(self._close_writing)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            self._undo.callback(signal.set_wakeup_fd, before)
            for number in self._numbers:
                self._undo.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def let_in(self) -> None:
        """Take those, too, that came since before this program began: whoever started it kept them waiting."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def read(self) -> Iterator[signal.Signals]:
        """Those that came, in their order."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self.reading, _AT_ONCE):
                if number in self._numbers:  # a handler of somebody else's has its byte here, too
                    yield signal.Signals(number)

    def wait(self, timeout_s: float | None = None) -> list[signal.Signals]:
        """Wait until one has come, or somebody has called `wake`. Empty then, and when the time is over."""
        select.select([self.reading], [], [], timeout_s)
        return list(self.read())

    def wake(self) -> None:
        """End a wait, from any thread. Does nothing once they were given back."""
        with self._lock, contextlib.suppress(BlockingIOError):  # it is full: nobody can wait
            if self._writing >= 0:
                os.write(self._writing, _WOKEN)

    def _close_writing(self) -> None:
        with self._lock:
            writing, self._writing = self._writing, -1
            os.close(writing)


def set_soon(event: threading.Event) -> None:
    """Set an event from a handler. A thread does it: whoever was interrupted may have the lock that it takes."""
    threading.Thread(target=event.set, daemon=True).start()

"""Stays with a program in a container from its start to its end: carries bytes of its terminal, hands signals on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.container.options import OptionInvalidError
from pagepool.linux.signals import Signals, find_signal, heeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pagepool.container.logs import KeptLog
    from pagepool.container.process import Running, Task
    from pagepool.container.terminal import Pump

_FORWARDED: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)
_ASKED_ENOUGH: Final = 3
"""So many SIGINT or SIGTERM, and the program is killed: one that is process 1 ignores them by default."""
_LOOK_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of SIGINT, SIGTERM and SIGHUP: another signal, and so much later the program is killed.

    Args:
        number: of the signal.
        grace_s: until it is killed.
    """

    number: int
    grace_s: float


def has_input_terminal(*, tty: bool, interactive: bool) -> bool:
    """Whether what is typed at our terminal goes to the program.

    Raises:
        OptionInvalidError: that was asked for, and our input is none.
    """
    if tty and interactive and not os.isatty(0):
        raise OptionInvalidError("-it", "standard input is no terminal")
    return tty and interactive


def size_terminal(process: dict[str, Any]) -> None:
    """Give a program's terminal the size of ours before it runs: it may ask at once."""
    from pagepool.container import terminal  # seldom wanted, as all that is imported in functions here

    ours = terminal.find_terminal()
    if ours is not None:
        columns, rows = os.get_terminal_size(ours)
        process["consoleSize"] = {"height": rows, "width": columns}


def watch_signals() -> Signals:
    """Takes all signals that a program is to get, or to notice; to be entered before it is started."""
    return Signals((*heeded(_FORWARDED), signal.SIGWINCH))


class Attendance:
    """One program from its start to its end.

    Args:
        running: it.
        task: what it was started by.
        signals: of `watch_signals`, entered.
        started: called once, when it has begun, with the number that it has on the host.
        ending: None: signals are handed on as they are.
        log: kept within its bound meanwhile.
    """

    def __init__(
        self,
        running: Running,
        task: Task,
        signals: Signals,
        started: Callable[[int], None] | None = None,
        ending: Ending | None = None,
        log: KeptLog | None = None,
    ) -> None:
        self._running = running
        self._task = task
        self._signals = signals
        self._started = started
        self._ending = ending
        self._log = log
        self._asked = 0
        self._deadline: float | None = None
        self._pump: Pump | None = None
        self._carried = False
        self._undo = contextlib.ExitStack()

    def to_the_end(self) -> int:
        """Wait for the program's end; its exit code.

        Raises:
            ContainerError: it was never started; its subclasses say what of it is missing.
        """
        ended = os.pidfd_open(self._running.child)
        with self._undo:
            self._undo.callback(os.close, ended)
            while not self._turn(ended):
                pass
            if self._pump:
                self._pump.drain()
            if self._log:
                self._log.drain()
        # A program may have ended before it was seen to begin.
        code = self._running.finish()
        self._note()
        return code

    def _turn(self, ended: int) -> bool:
        """Wait for something to happen, and handle it; True at the end."""
        running = self._running
        wanted = {ended: select.POLLIN, self._signals.reading: select.POLLIN}
        if running.status is not None:
            wanted[running.status] = select.POLLIN
        if self._pump:
            wanted |= self._pump.interests()
        if self._log:
            wanted |= self._log.interests()
        ready = _poll(wanted, self._wait_s())
        if self._log and self._log.is_due(ready):
            self._log.handle()
        running.on_status()
        self._note()
        self._take_terminal()
        for number in self._signals.read() if self._signals.reading in ready else ():
            self._handle(number)
        if self._pump:
            for descriptor in ready & self._pump.interests().keys():
                if not self._pump.handle(descriptor):
                    self._pump = None
                    break
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            running.kill()
        return ended in ready

    def _wait_s(self) -> float | None:
        if self._running.status is None and not self._running.started:
            return _LOOK_S
        left = [] if self._deadline is None else [max(0.0, self._deadline - time.monotonic())]
        if self._log and (wait_s := self._log.wait_s()) is not None:
            left.append(wait_s)
        return min(left, default=None)

    def _note(self) -> None:
        """Say that it runs, once it does."""
        if self._running.started and self._started is not None:
            started, self._started = self._started, None
            started(self._running.pid)

    def _take_terminal(self) -> None:
        """Begin to carry bytes, once there is a terminal to carry them from."""
        master = self._running.master
        if master is None or self._pump or not self._task.terminal or self._carried:
            return
        self._carried = True
        from pagepool.container import terminal

        source = 0 if self._task.direct else None
        if self._task.direct:
            self._undo.enter_context(terminal.raw_mode(0))
        self._pump = terminal.Pump(master, source, 1)
        self._resize()

    def _resize(self) -> None:
        from pagepool.container import terminal

        ours = terminal.find_terminal()
        if ours is not None and self._running.master is not None:
            terminal.copy_size(ours, self._running.master)

    def _handle(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._running.master is not None:
                self._resize()
                self._running.send(number)
            return
        if number not in _FORWARDED:
            return
        ends = number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if ends and self._ending is not None:
            number = self._ending.number
            self._deadline = self._deadline or time.monotonic() + self._ending.grace_s
        self._asked += number in (signal.SIGINT, signal.SIGTERM)
        if self._asked >= _ASKED_ENOUGH:
            self._running.kill()
        else:
            self._running.send(number)


def parse_signal(text: str) -> int:
    """The number of a signal that `find_signal` knows; that of SIGTERM if it is none."""
    return find_signal(text) or int(signal.SIGTERM)


def _poll(wanted: Mapping[int, int], wait_s: float | None) -> set[int]:
    poller = select.poll()
    for descriptor, events in wanted.items():
        poller.register(descriptor, events)
    return {descriptor for descriptor, _ in poller.poll(None if wait_s is None else wait_s * 1000)}

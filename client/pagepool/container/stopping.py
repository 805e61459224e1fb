"""Ends containers that other processes run: their stop signal first, SIGKILL for those that do not heed it.

Signals go to a container's first process by a descriptor of it (`finding`). The owner notices the end, cleans up, and
hands the exit code on. It ends then, as `pagepool run` does; or it is a program that goes on, and lets go of the
container's lock when nothing is left of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from pagepool.container.attending import parse_signal
from pagepool.container.finding import look_again, open_first_process
from pagepool.container.records import DEFAULT_DIRECTORY, WAIT_S, Record, ends_with
from pagepool.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CLEAN_UP_S: Final = 30.0
_LOOK_S: Final = 0.01
"""How often is looked whether a lock is free: nobody tells."""


class Stopping:
    """One container that is to end. `close` afterwards.

    Args:
        record: of a container that lives.
        directory: where it is noted.
    """

    def __init__(self, record: Record, directory: Path = DEFAULT_DIRECTORY) -> None:
        self.record = record
        self.killed = False
        """Whether it got SIGKILL."""
        self._directory = directory
        self._program = -1
        self._owner = -1
        self._lock = -1
        with contextlib.suppress(ProcessLookupError):
            self._owner = os.pidfd_open(record.owner)
        with contextlib.suppress(FileNotFoundError):
            self._lock = os.open(directory / record.id / "lock", os.O_RDONLY | os.O_CLOEXEC)
        # Looked at behind opening the owner: the lock says that it lives still, so that the pid was its own.
        found = look_again(self.record, self._directory)
        if found is None:
            self.close()
        else:
            self._find_program(found)

    def _find_program(self, found: Record) -> None:
        """Find the container's first process, if there is one by now."""
        if self._program < 0:
            program = open_first_process(found)
            self._program = -1 if program is None else program

    def ask(self, number: int | None = None) -> None:
        """Send a signal; None: the image's stop signal."""
        number = parse_signal(self.record.stop_signal) if number is None else number
        if self._program >= 0:
            self.killed |= number == signal.SIGKILL
            _send(self._program, number)
        elif self._owner >= 0 and ends_with(self.record):  # no program is known of yet
            _send(self._owner, signal.SIGTERM)

    def wait(self, wait_s: float) -> None:
        """Wait for its end, kill it after so many seconds, and wait until nothing is left of it.

        Raises:
            BusyError: it has not ended.
        """
        if self._has_ended(wait_s):
            return
        found = look_again(self.record, self._directory)
        if found is not None:  # else only what is left of it is being removed
            self._find_program(found)
            self.ask(signal.SIGKILL)
        if not self._has_ended(_CLEAN_UP_S):
            name = self.record.name or self.record.id
            does = "has not ended yet" if ends_with(self.record) else "has not cleaned up behind it yet"
            raise BusyError(f"container {name} was to end, and process {self.record.owner} {does}")

    def _has_ended(self, wait_s: float) -> bool:
        if self._owner < 0:
            return True
        poller = select.poll()
        poller.register(self._owner, select.POLLIN)
        if ends_with(self.record):
            return bool(poller.poll(wait_s * 1000))
        deadline = time.monotonic() + wait_s
        while not self._is_let_go() and not poller.poll(0):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poller.poll(min(left, _LOOK_S) * 1000)
        return True

    def _is_let_go(self) -> bool:
        """Whether nobody has the container's lock any more."""
        if self._lock < 0:
            return True
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Let go of it."""
        for descriptor in (self._owner, self._program, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._owner = self._program = self._lock = -1


def stop_containers(
    records: Iterable[Record], wait_s: float | None, number: int | None = None, directory: Path = DEFAULT_DIRECTORY
) -> list[tuple[Record, bool]]:
    """End containers, all at the same time. Blocks.

    Args:
        wait_s: until one that has not ended is killed; None: each one's own, or `WAIT_S`.
        number: the signal that asks them to end; None: each one's own.

    Returns:
        each, and whether it had to be killed.

    Raises:
        BusyError: one has not ended even then. The others have.
    """
    with contextlib.ExitStack() as undo:
        found = [Stopping(record, directory) for record in records]
        for one in found:
            undo.callback(one.close)
            one.ask(number)
        now = time.monotonic()
        failures = []
        for one in sorted(found, key=lambda one: _wait_s(one.record, wait_s)):
            try:
                one.wait(max(0.0, now + _wait_s(one.record, wait_s) - time.monotonic()))
            except BusyError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return [(one.record, one.killed) for one in found]


def _wait_s(record: Record, given: float | None) -> float:
    if given is not None:
        return given
    return WAIT_S if record.stop_timeout_s is None else record.stop_timeout_s


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)

"""Ends containers that other processes run: their stop signal first, SIGKILL for those that do not heed it.

Signals go to a container's first process by a descriptor of it, taken while its owner was alive and above it: whatever
becomes of the pids, no other process gets one. The owner notices the end, cleans up, and hands the exit code on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.records import DEAD, DEFAULT_DIRECTORY, Record, list_containers
from pagepool.container.run import parse_signal
from pagepool.errors import BusyError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST_PREFIX: Final = 3
_MOST_PARENTS: Final = 16
_CLEAN_UP_S: Final = 30.0


class ContainerUnknownError(NotFoundError):
    """No such container."""

    what = "container"


def find_containers(names: Iterable[str], directory: Path = DEFAULT_DIRECTORY) -> list[Record]:
    """The containers of ids, names, or the beginnings of ids: each once, in the order in which they are named.

    Raises:
        ContainerUnknownError: there is none of a name, or none that lives.
        InvalidError: several ids begin so.
    """
    living = [record for record in list_containers(directory) if record.status != DEAD]
    return list({found.id: found for found in (_find(living, name) for name in names)}.values())


def _find(living: list[Record], name: str) -> Record:
    for record in living:
        if name in (record.id, record.name):
            return record
    found = [record for record in living if len(name) >= _LEAST_PREFIX and record.id.startswith(name)]
    if not found:
        raise ContainerUnknownError(name)
    if len(found) > 1:
        raise InvalidError(name, f"the ids of {len(found)} containers begin so")
    return found[0]


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
        with contextlib.suppress(ProcessLookupError):
            self._owner = os.pidfd_open(record.owner)
        # Looked at behind opening the owner: the lock says that it lives still, so that the pid was its own.
        found = self._noted()
        if found is None:
            self.close()
        else:
            self._find_program(found)

    def _noted(self) -> Record | None:
        """What is noted of it now; None if it has ended, though its owner may not have."""
        for found in list_containers(self._directory):
            if found.id == self.record.id and found.owner == self.record.owner and found.status != DEAD:
                return found
        return None

    def _find_program(self, found: Record) -> None:
        """Find the container's first process, if there is one by now."""
        if self._program >= 0 or not found.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            program = os.pidfd_open(found.pid)
            if _descends(found.pid, found.owner):
                self._program = program
            else:  # it has ended, and the number may be somebody else's
                os.close(program)

    def ask(self, number: int | None = None) -> None:
        """Send a signal; None: the image's stop signal."""
        number = parse_signal(self.record.stop_signal) if number is None else number
        if self._program >= 0:
            self.killed |= number == signal.SIGKILL
            _send(self._program, number)
        elif self._owner >= 0:  # no program is known of yet
            _send(self._owner, signal.SIGTERM)

    def wait(self, wait_s: float) -> None:
        """Wait for its end, kill it after so many seconds, and wait until nothing is left of it.

        Raises:
            BusyError: it has not ended.
        """
        if self._has_ended(wait_s):
            return
        found = self._noted()
        if found is not None:  # else only what is left of it is being removed
            self._find_program(found)
            self.ask(signal.SIGKILL)
        if not self._has_ended(_CLEAN_UP_S):
            name = self.record.name or self.record.id
            raise BusyError(f"container {name} was to end, and process {self.record.owner} has not ended yet")

    def _has_ended(self, wait_s: float) -> bool:
        if self._owner < 0:
            return True
        poller = select.poll()
        poller.register(self._owner, select.POLLIN)
        return bool(poller.poll(wait_s * 1000))

    def close(self) -> None:
        """Let go of it."""
        for descriptor in (self._owner, self._program):
            if descriptor >= 0:
                os.close(descriptor)
        self._owner = self._program = -1


def stop_containers(
    records: Iterable[Record], wait_s: float, number: int | None = None, directory: Path = DEFAULT_DIRECTORY
) -> list[tuple[Record, bool]]:
    """End containers, all at the same time. Blocks.

    Args:
        wait_s: until one that has not ended is killed.
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
        deadline = time.monotonic() + wait_s
        failures = []
        for one in found:
            try:
                one.wait(max(0.0, deadline - time.monotonic()))
            except BusyError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return [(one.record, one.killed) for one in found]


def _descends(pid: int, ancestor: int) -> bool:
    for _ in range(_MOST_PARENTS):
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        if pid <= 1:
            return pid == ancestor
    return False


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)

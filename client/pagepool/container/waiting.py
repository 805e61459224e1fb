"""Waits for the end of containers that other processes run, and tells how they ended.

Whoever runs a container has its lock, writes the exit code into that, and lets go of it when nothing of the container
is left but its root. Who waits has the file open from before, and reads it when the lock is free: so nothing has to be
kept, and no pid is relied on. If nothing was written its owner was killed, and nobody knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pagepool.container.ended import find_ended
from pagepool.container.finding import ContainerUnknownError, look_again
from pagepool.container.records import DEFAULT_DIRECTORY, EXITED, KILLED, Record, ends_with, has_ended, read_told

if TYPE_CHECKING:
    from pathlib import Path

_CLEAN_UP_S: Final = 30.0


def wait_for_end(record: Record, directory: Path = DEFAULT_DIRECTORY) -> Record:
    """Wait until a container has ended: see `Waiting`."""
    with contextlib.closing(Waiting(record, directory)) as waiting:
        return waiting.wait()


class Waiting:
    """One container whose end is waited for. `close` afterwards.

    Args:
        record: as `find_containers` has found it.
        directory: where it is noted.

    Raises:
        ContainerUnknownError: it has ended meanwhile, and nothing was kept of it.
    """

    def __init__(self, record: Record, directory: Path = DEFAULT_DIRECTORY) -> None:
        self._record = record
        self._lock = -1
        self._owner = -1
        if has_ended(record):
            return
        try:
            self._lock = os.open(directory / record.id / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if find_ended(record) is None:
                raise ContainerUnknownError(record.name or record.id) from error
        if ends_with(record):
            with contextlib.suppress(ProcessLookupError):
                self._owner = os.pidfd_open(record.owner)
            # Looked at behind opening it: the lock says that it lives still, so that the pid was its own.
            if self._owner >= 0 and look_again(record, directory) is None:
                os.close(self._owner)
                self._owner = -1

    def wait(self) -> Record:
        """Block until it has ended.

        Returns:
            what is known of it then: its status is exited; or killed, without an exit code, if its owner was killed.
        """
        if has_ended(self._record):
            return self._record
        code = None
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            code = read_told(self._lock)
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._wait_for_owner()
        found = find_ended(self._record)
        if found is not None:
            return found
        return replace(self._record, owner=0, pid=0, status=KILLED if code is None else EXITED, exit_code=code)

    def _wait_for_owner(self) -> None:
        """Wait until its root is gone, too, as far as its owner does nothing else: its upper can be used again then."""
        if self._owner >= 0:
            poller = select.poll()
            poller.register(self._owner, select.POLLIN)
            poller.poll(_CLEAN_UP_S * 1000)

    def close(self) -> None:
        """Let go of it."""
        for descriptor in (self._lock, self._owner):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._owner = -1

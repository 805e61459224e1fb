"""The files of upload sessions, seen from outside: how many there are, what they take, and which nobody wants."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

from pagepool.errors import BusyError

if TYPE_CHECKING:
    from pathlib import Path


_RECORD = ".json"
_COUNT_EVERY_S = 1.0


class TooManyUploadsError(BusyError):
    """As many upload sessions are open as may be; one that ends makes room."""


class SessionLimit:
    """How many sessions may be open. Thread-safe.

    The directory is counted at most once a second; in between, what this process begins and ends is added up. So
    several processes together may go beyond the limit by what they begin in a second.

    Args:
        directory: of the sessions.
        most: how many there may be; 0 for any number.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._directory = directory
        self._most = most
        self._lock = threading.Lock()
        self._count = 0
        self._counted_s = float("-inf")

    def take(self) -> None:
        """Count a session that is about to begin.

        Raises:
            TooManyUploadsError: there is no room for it.
        """
        if not self._most:
            return
        with self._lock:
            now = time.monotonic()
            if now - self._counted_s >= _COUNT_EVERY_S:
                self._count, self._counted_s = count_sessions(self._directory), now
            if self._count >= self._most:
                raise TooManyUploadsError(f"{self._count} uploads are open, and there may be {self._most}")
            self._count += 1

    def give_back(self) -> None:
        """Count one that has ended."""
        with self._lock:
            self._count = max(0, self._count - 1)


def count_sessions(directory: Path) -> int:
    """How many sessions there are."""
    try:
        with os.scandir(directory) as entries:
            return sum(not entry.name.endswith(_RECORD) for entry in entries)
    except FileNotFoundError:
        return 0


def sweep(directory: Path, idle_s: float) -> int:
    """Remove sessions that nobody wrote to for `idle_s` seconds, and leftovers. Returns how many files.

    Safe beside a running service: a session that is being written to is locked, and left alone.
    """
    removed = 0
    oldest = time.time() - idle_s
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        try:
            if path.stat().st_mtime > oldest:
                continue
            data = path.with_suffix("")
            if path.suffix != _RECORD:
                removed += _remove_unlocked(path, oldest)
            elif not data.exists():
                path.unlink()
                removed += 1
        except FileNotFoundError:  # finished meanwhile
            continue
    return removed


def directory_size(path: Path) -> int:
    """Bytes in the files of a directory."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # finished meanwhile
                    continue
    except FileNotFoundError:
        return 0
    return total


def _remove_unlocked(path: Path, oldest: float) -> int:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        # Whoever held the lock a moment ago may have written.
        if os.fstat(file.fileno()).st_mtime > oldest:
            return 0
        path.unlink(missing_ok=True)
        path.with_name(path.name + _RECORD).unlink(missing_ok=True)
    return 1

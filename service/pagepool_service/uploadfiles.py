"""The files of upload sessions, seen from outside: how many there are, what they take, and which nobody wants."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from pagepool.errors import BusyError
from pagepool_service.store.disk import refused

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.store.clock import Timeline


_RECORD = ".json"
_COUNT_EVERY_S = 1.0
_MARK_SIZE = 4  # bytes of an id that say whose it is; the other twelve cannot be guessed


class TooManyUploadsError(BusyError):
    """As many upload sessions are open as may be; one that ends makes room."""


def owner_mark(owner: str) -> str:
    """What the ids of a user's sessions begin with; "" if they are nobody's, and then not counted by user."""
    return hashlib.blake2b(owner.encode(errors="surrogatepass"), digest_size=_MARK_SIZE).hexdigest() if owner else ""


class SessionLimit:
    """How many sessions may be open, in all and of each user. Thread-safe.

    The directory is counted at most once a second; in between, what this process begins and ends is added up. So
    several processes together may go beyond the limit by what they begin in a second.

    Args:
        directory: of the sessions.
        most: how many there may be; 0 for any number.
        most_of_user: how many of them one user may have; 0 for any number.
    """

    def __init__(self, directory: Path, most: int, most_of_user: int = 0) -> None:
        self._directory = directory
        self._most = most
        self._most_of_user = most_of_user
        self._lock = threading.Lock()
        self._count = 0
        self._by_mark: Counter[str] = Counter()
        self._counted_s = float("-inf")

    def take(self, owner: str = "") -> None:
        """Count a session that is about to begin.

        Args:
            owner: whose it is; "" if it is nobody's in particular.

        Raises:
            TooManyUploadsError: there is no room for it.
        """
        if not self._most and not self._most_of_user:
            return
        mark = owner_mark(owner)
        with self._lock:
            now = time.monotonic()
            if now - self._counted_s >= _COUNT_EVERY_S:
                self._by_mark = count_by_mark(self._directory)
                self._count, self._counted_s = self._by_mark.total(), now
            if self._most and self._count >= self._most:
                raise TooManyUploadsError(f"{self._count} uploads are open, and there may be {self._most}")
            of_user = self._by_mark[mark]
            if mark and self._most_of_user and of_user >= self._most_of_user:
                raise TooManyUploadsError(f"{owner} has {of_user} uploads open, and may have {self._most_of_user}")
            self._count += 1
            self._by_mark[mark] += 1

    def give_back(self, session: str = "") -> None:
        """Count one that has ended, by its id or what that begins with."""
        with self._lock:
            self._count = max(0, self._count - 1)
            mark = session[: 2 * _MARK_SIZE]
            self._by_mark[mark] = max(0, self._by_mark[mark] - 1)


def count_sessions(directory: Path) -> int:
    """How many sessions there are."""
    return count_by_mark(directory).total()


def count_by_mark(directory: Path) -> Counter[str]:
    """How many sessions there are, by what their ids begin with.

    Raises:
        StoreFailedError, ReadOnlyError: the disk does not say.
    """
    try:
        with os.scandir(directory) as entries:
            return Counter(entry.name[: 2 * _MARK_SIZE] for entry in entries if not entry.name.endswith(_RECORD))
    except FileNotFoundError:
        return Counter()
    except OSError as error:
        raise refused(error, "uploads cannot be counted") from error


def sweep(directory: Path, idle_s: float, timeline: Timeline | None = None) -> int:
    """Remove sessions that nobody wrote to for `idle_s` seconds, and leftovers. Returns how many files.

    Safe beside a running service: a session that is being written to is locked, and left alone.

    Args:
        timeline: counts the seconds; None: by the machine's clock, whenever that was set.
    """
    removed = 0
    oldest = time.time() - idle_s if timeline is None else timeline.since_ns(idle_s) / 1e9
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

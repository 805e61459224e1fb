"""What takes long to make, trees and their EROFS images: made by one process at a time, and by how many steps so far.

    DATA/trees/making/HEX   locked (flock) by the process that makes it; how many steps that has made, as text

Who comes second waits for the lock, and finds it made. A process that is killed lets go of its lock; the file that it
leaves is nobody's, and the next one takes it. Where no file can be made, each process makes its own.

A step is anything that is done: whoever waits can tell by their number that it goes on. Thread-safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from pagepool.image.treestore import list_files, remove_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOOK_S: Final = 0.1
_TELL_S: Final = 0.5
_MOST_TEXT: Final = 32


class Steps:
    """How many steps of work this process has made, or seen others make. They are of no use but to be compared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, count: int = 1) -> None:
        """Note that some were made."""
        with self._lock:
            self.count += count


class Makings:
    """Who makes what.

    Args:
        directory: of the locks, made when it is needed; None: no other process makes what this one does.
        steps: noted there.
    """

    def __init__(self, directory: Path | None, steps: Steps | None = None) -> None:
        self._directory = directory
        self.steps = steps or Steps()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[Making]:
        """Be the one process, and thread, that makes something, for the length of the block. Blocks until then; what is
        wanted may have been made meanwhile.

        Args:
            name: of a file.
        """
        path = None if self._directory is None else self._directory / name
        descriptor = None if path is None else self._take(path)
        if path is None or descriptor is None:
            yield Making(self.steps, None)
            return
        try:
            yield Making(self.steps, descriptor)
        finally:
            remove_file(path)  # while it is locked: who waits for this very file looks again
            os.close(descriptor)

    def is_busy(self, name: str) -> bool:
        """Whether somebody makes something just now, and `alone` would wait."""
        if self._directory is None:
            return False
        try:
            descriptor = os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    def is_any_busy(self) -> bool:
        """Whether somebody makes anything just now."""
        found = [] if self._directory is None else list_files(self._directory)
        return any(self.is_busy(path.name) for path in found)

    def _take(self, path: Path) -> int | None:
        """The locked file; None if there can be none."""
        seen = b""
        while True:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file(descriptor, path):
                    return descriptor
                os.close(descriptor)
            except BlockingIOError:
                told = os.pread(descriptor, _MOST_TEXT, 0)
                os.close(descriptor)
                if told != seen:
                    seen = told
                    self.steps.add()
                time.sleep(_LOOK_S)
            except OSError:  # a file system without locks
                os.close(descriptor)
                return None


class Making:
    """Something that is being made.

    Args:
        steps: of this process.
        descriptor: of the file that tells others; stays the caller's.
    """

    def __init__(self, steps: Steps, descriptor: int | None) -> None:
        self._steps, self._descriptor = steps, descriptor
        self._due = 0.0

    def step(self, count: int = 1) -> None:
        """Note that some steps were made. Cheap."""
        self._steps.add(count)
        now = time.monotonic()
        if self._descriptor is not None and now >= self._due:
            self._due = now + _TELL_S
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, f"{self._steps.count:{_MOST_TEXT}}".encode(), 0)


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name, which others may have removed meanwhile."""
    status = os.fstat(descriptor)
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)
    return False

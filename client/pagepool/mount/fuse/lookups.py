"""How often the kernel has looked a node up: as long as it may name it, the node must be there.

Every answer that names a node counts one; FORGET takes counts back. The file system is told of the first and of the
last (`hold`, `release`), and of what is left when serving ends, because the kernel sends no FORGET then. Thread-safe.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagepool.vfs.interface import FileSystem


class Lookups:
    """The nodes that the kernel knows.

    Args:
        filesystem: whose nodes they are.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self._counts: dict[int, int] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Nodes that are known now."""
        return len(self._counts)

    def add(self, ino: int) -> None:
        """Count an answer that names a node. ESTALE if there is none any more."""
        with self._lock:
            count = self._counts.get(ino, 0)
            if not count:
                self._filesystem.hold(ino)
            self._counts[ino] = count + 1

    def forget(self, ino: int, count: int) -> None:
        """Take counts back. More than there are, or of a node that is not known (the root never is), is ignored."""
        with self._lock:
            left = self._counts.get(ino, 0) - count
            if left > 0:
                self._counts[ino] = left
            elif ino in self._counts:
                del self._counts[ino]
                self._filesystem.release(ino)

    def clear(self) -> None:
        """Take everything back: the kernel is gone."""
        with self._lock:
            while self._counts:
                ino, _ = self._counts.popitem()
                self._filesystem.release(ino)

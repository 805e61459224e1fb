"""Which objects the mounted trees have: asked for every object when the pool makes room.

A hash table of raw digests, each once however many trees have it: about 160 bytes an object. A tree whose last mount
went stays in it until `settle`, so that mounting an image again and again costs nothing.

`add`, `remove` and `settle` take milliseconds for tens of thousands of objects. Looking takes no lock.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ObjectsInUse:
    """The objects of some trees. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[bytes, int] = {}
        self._trees: dict[str, list[bytes]] = {}
        self._leaving: set[str] = set()

    def add(self, tree: str, digests: Iterable[bytes]) -> None:
        """A tree is mounted.

        Args:
            tree: names it.
            digests: of its objects, each once; not looked at if the tree is known.
        """
        with self._lock:
            self._leaving.discard(tree)
            if tree in self._trees:
                return
            counts, mine = self._counts, []
            for digest in digests:
                mine.append(digest)
                counts[digest] = counts.get(digest, 0) + 1
            self._trees[tree] = mine

    def remove(self, tree: str) -> None:
        """A tree is not mounted any more; its objects go with the next `settle`."""
        with self._lock:
            if tree in self._trees:
                self._leaving.add(tree)

    def settle(self) -> None:
        """Let go of the objects of trees that were removed."""
        with self._lock:
            for tree in self._leaving:
                for digest in self._trees.pop(tree):
                    left = self._counts[digest] - 1
                    if left:
                        self._counts[digest] = left
                    else:
                        del self._counts[digest]
            self._leaving.clear()

    def __contains__(self, digest: object) -> bool:
        return digest in self._counts

    def __len__(self) -> int:
        return len(self._counts)

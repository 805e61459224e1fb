"""What is on its way to a node: the objects that are in streams, and waiting for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pagepool.node.source import Source

_GLANCE_S: Final = 0.005


class Coming(NamedTuple):
    """An object that is in a stream.

    Args:
        event: set when that has ended.
        here: set when all of the object has come, or the stream has ended.
        extents: which of its extents; None: all.
    """

    event: threading.Event
    here: threading.Event
    extents: frozenset[int] | None

    def brings(self, number: int) -> bool:
        return self.extents is None or number in self.extents


class Streams:
    """The objects that are in streams just now. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: dict[bytes, Coming] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._coming

    def expect(self, source: Source, wanted: Mapping[int, Collection[int] | None]) -> dict[bytes, Coming]:
        """Objects of a tree are about to come: whoever wants one of them waits for it.

        Args:
            wanted: by the place of an object in the tree, which of its extents; None: all.

        Returns:
            what `end` is called with, however the stream ends.
        """
        event = threading.Event()
        coming = {
            source.tree.object_key(index)[0]: Coming(
                event, threading.Event(), None if numbers is None else frozenset(numbers)
            )
            for index, numbers in wanted.items()
        }
        with self._lock:
            self._coming |= coming
        return coming

    def end(self, coming: Mapping[bytes, Coming]) -> None:
        """A stream has ended."""
        with self._lock:
            for digest, one in coming.items():
                if self._coming.get(digest) is one:
                    del self._coming[digest]
        for one in coming.values():
            one.event.set()
            one.here.set()

    def wait(self, source: Source, index: int, digest: bytes) -> None:
        """Wait until all of an object is here, or nothing of it is on its way."""
        coming = self._coming.get(digest)
        while coming is not None and source.content.whole(index) is None and not coming.event.is_set():
            # Set by its last extent; an object that the pool did not take comes with the end of the stream.
            coming.here.wait(_GLANCE_S)
            if coming.here.is_set():
                coming.event.wait(_GLANCE_S)

    def wait_for_part(self, source: Source, index: int, digest: bytes, start: int, end: int) -> None:
        """Wait until bytes `[start, end)` of an object are here, or not on their way."""
        coming = self._coming.get(digest)
        if coming is None:
            return
        for at in range(start - start % EXTENT_SIZE, end, EXTENT_SIZE):
            piece = max(start, at), min(end, at + EXTENT_SIZE)
            while coming.brings(at // EXTENT_SIZE) and not source.content.is_here(index, *piece):
                if coming.event.wait(_GLANCE_S):
                    break

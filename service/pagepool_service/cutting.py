"""One file's bytes become extents and a name.

Owns the cutting at fixed offsets, and the holes of sparse files, which are bytes like others: a hole of any length
costs one name. Knows nothing of the store. For one thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from pagepool.extents import EXTENT_SIZE, ZERO_EXTENT

if TYPE_CHECKING:
    from pagepool.image import Member


class ExtentSink(Protocol):
    """What takes the extents of a file as they are cut."""

    def extent(self, digest: bytes, data: bytes | memoryview) -> None:
        """Take one. A view is as valid as the bytes that the file was cut from."""


class ObjectBuilder:
    """Cut one file's bytes into extents and name it."""

    def __init__(self, sink: ExtentSink) -> None:
        self._sink = sink
        self._whole = blake3()
        self._extents: list[bytes] = []
        self._held = bytearray()
        self._size = 0
        self._segments: deque[tuple[int, int]] | None = None

    def begin(self, member: Member, name: bytes = b"") -> None:
        """A new file.

        Args:
            name: its BLAKE3 where that is known already.
        """
        self._name = name
        self._hashed = member.size > EXTENT_SIZE and not name
        self._extents = []
        self._held.clear()
        self._size = 0
        self._final = member.size
        self._segments = None
        if member.segments is not None:
            self._segments = deque(member.segments)
            self._left = self._segments[0][1] if self._segments else 0
        if self._hashed:
            self._whole = blake3()

    def data(self, view: memoryview) -> None:
        """The next stored bytes of the file; of a sparse one, those of its next segments."""
        if self._segments is None:
            self._append(view)
            return
        while view:
            offset, length = self._segments[0]
            if self._left == length:
                self._zeros(offset - self._size)
            piece = view[: self._left]
            self._append(piece)
            self._left -= len(piece)
            view = view[len(piece) :]
            if not self._left:
                self._segments.popleft()
                self._left = self._segments[0][1] if self._segments else 0

    def end(self) -> tuple[bytes, int, list[bytes]]:
        """(BLAKE3, size, extents) of the file."""
        if self._segments is not None:
            self._zeros(self._final - self._size)
        if self._held:
            self._emit(bytes(self._held))
            self._held.clear()
        if self._size > EXTENT_SIZE:
            return self._name or self._whole.digest(), self._size, self._extents
        return (self._extents[0] if self._extents else blake3().digest()), self._size, self._extents

    def _append(self, view: memoryview) -> None:
        self._size += len(view)
        if self._hashed:
            self._whole.update(view)
        if self._held:
            taken = view[: EXTENT_SIZE - len(self._held)]
            self._held += taken
            if len(self._held) < EXTENT_SIZE:
                return
            self._emit(bytes(self._held))
            self._held.clear()
            view = view[len(taken) :]
        if len(view) == self._final <= EXTENT_SIZE:  # a small file, whole
            self._emit(view)
            return
        while len(view) >= EXTENT_SIZE:
            self._emit(view[:EXTENT_SIZE])
            view = view[EXTENT_SIZE:]
        self._held += view

    def _zeros(self, count: int) -> None:
        """A hole, as bytes: an extent of zeros is stored once, however often it is named."""
        piece = memoryview(_ZEROS)
        before = min(count, -self._size % EXTENT_SIZE)
        self._append(piece[:before])
        whole, after = divmod(count - before, EXTENT_SIZE)
        if whole:
            self._zero_extents(whole)
        self._append(piece[:after])

    def _zero_extents(self, count: int) -> None:
        """Whole extents of a hole, from where one begins: nothing is left but to hash them as a part of the file."""
        left = count * EXTENT_SIZE
        self._size += left
        piece = memoryview(_ZEROS)
        while self._hashed and left:
            self._whole.update(piece[:left])
            left -= min(left, len(piece))
        self._extents += [ZERO_EXTENT] * count
        self._sink.extent(ZERO_EXTENT, piece[:EXTENT_SIZE])

    def _emit(self, data: bytes | memoryview) -> None:
        digest = blake3(data).digest()
        self._extents.append(digest)
        self._sink.extent(digest, data)


_ZEROS = bytes(1 << 20)

"""What the cache asks of pools and of their files, and an object that it has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool.image.treefile import ObjectInfo

_OF_A_PARTIAL = 4  # its map and its data, each for writing and for reading


class WholeFile(Protocol):
    """An object of a pool that is open: see `pagepool.pool.PoolFile`."""

    @property
    def view(self) -> memoryview: ...
    def is_current(self) -> bool: ...
    def close(self) -> None: ...


class PartialFile(Protocol):
    """An object that is being filled: see `pagepool.pool.Partial`."""

    def has(self, number: int, /) -> bool: ...
    def missing(self, first: int, end: int, /) -> list[int]: ...
    def write(self, number: int, data: memoryview, /) -> object: ...
    def view(self, offset: int, size: int, /) -> memoryview: ...
    def is_current(self) -> bool: ...
    def close(self) -> None: ...


class ReadablePool(Protocol):
    """What the cache uses of somebody else's pool: see `pagepool.pool.ReadOnlyPool`."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def get(self, digest: bytes, /) -> WholeFile | None: ...
    def close(self) -> None: ...


@runtime_checkable
class SharedPool(ReadablePool, Protocol):
    """What it uses of a pool of its own: see `pagepool.pool.Pool`."""

    def put(self, digest: bytes, data: memoryview, /) -> WholeFile | None: ...
    def partial(self, digest: bytes, size: int, extents: Sequence[bytes], /) -> PartialFile: ...


class Held:
    """An object that is open here: whole, or as far as it has been filled.

    Its files are closed when nobody refers to it any more: threads that are in the middle of reading or filling it
    finish, though the cache has let go of it meanwhile. Views stay valid.
    """

    __slots__ = ("file", "info", "partial", "tick", "whole")

    def __init__(self, info: ObjectInfo, file: WholeFile | None, partial: PartialFile | None, tick: int) -> None:
        self.info = info
        self.file = file
        self.partial = partial
        self.tick = tick
        self.whole = None if file is None else file.view

    @property
    def descriptors(self) -> int:
        """How many file descriptors it takes."""
        return 1 if self.partial is None else _OF_A_PARTIAL

    def view(self, start: int, end: int) -> memoryview | None:
        """The bytes `[start, end)`, if all of them are there."""
        if self.whole is not None:
            return self.whole[start:end]
        partial = self.partial
        if partial is None or partial.missing(start // EXTENT_SIZE, -(-end // EXTENT_SIZE)):
            return None
        return partial.view(start, end - start)

    def look(self) -> None:
        """See whether it has become whole."""
        if self.partial is not None and not self.partial.missing(0, self.info.extent_count):
            self.whole = self.partial.view(0, self.info.size)

    def is_current(self) -> bool:
        """Whether the pool still has it: what was removed because it was damaged is not to be read any more."""
        try:
            return all(opened is None or opened.is_current() for opened in (self.file, self.partial))
        except OSError:  # it cannot be found out
            return True

    def __del__(self) -> None:
        for opened in (self.file, self.partial):
            if opened is not None:
                opened.close()

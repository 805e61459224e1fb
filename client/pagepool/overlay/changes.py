"""What differs from the image, for whoever makes a layer of it.

Read-only questions to an open overlay. What is compared is what both show: an inode that was changed and changed back
is not changed. `ChangeView.below` is as of the first time it is asked; make a new view after further changes.
Thread-safe as the overlay is.
"""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.image.member import Kind
from pagepool.overlay.blockmap import HOLE
from pagepool.vfs.interface import PAGE_SIZE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from threading import Lock

    from pagepool.overlay.state import State
    from pagepool.vfs.interface import FileSystem

_DIRECTORY: Final = Kind.DIRECTORY


class Source(Enum):
    """Where the bytes of a range come from."""

    IMAGE = "image"
    PRIVATE = "private"
    HOLE = "hole"


class Range(NamedTuple):
    """Bytes `[start, end)` of a file, all from one source. What is a hole reads as zeros."""

    start: int
    end: int
    source: Source


class ChangeView:
    """Questions to an overlay about its changes. Made by `OverlayFileSystem.changes`.

    Attributes:
        base: the image. An inode that it has keeps its number in the overlay.
    """

    def __init__(self, state: State, lock: Lock) -> None:
        self.base: FileSystem = state.base
        self._state = state
        self._lock = lock

    def base_number(self, ino: int) -> int | None:
        """The number of an inode in the image, which is the same; None if the image does not have it."""
        return ino if 0 < ino <= self._state.base_inodes else None

    def inodes(self) -> list[int]:
        """The inodes that have a name, and are new or may have changed, by number."""
        with self._lock:
            return sorted(ino for ino, node in self._state.nodes.items() if node.nlink)

    def removed(self) -> list[int]:
        """The inodes of the image that have no name any more, by number."""
        with self._lock:
            state = self._state
            return sorted(state.gone.union(ino for ino in state.orphans if ino <= state.base_inodes))

    def below(self, directory: int) -> bool:
        """Whether a directory, or anything below it, may have changed. The first time it may walk the image.

        Args:
            directory: one that both have, or a new one.
        """
        return directory in self._touched

    def entries(self, directory: int) -> Mapping[bytes, int]:
        """The entries of a directory that are not the image's: an inode's number, or 0 where the image's was removed.

        All of them, for a directory that the image does not have. A name may lead to the inode that it has in the
        image, too: if it was moved away and back.
        """
        with self._lock:
            node = self._state.nodes.get(directory)
            return dict(node.entries) if node is not None and node.kind is _DIRECTORY else {}

    def metadata_changed(self, ino: int) -> bool:
        """Whether mode, owner, group or modification time differ from the image's; True for a new inode."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is None or not node.based:
                return node is not None
            old = self.base.attributes(ino)
            return (node.mode, node.uid, node.gid, node.mtime_ns) != (old.mode, old.uid, old.gid, old.mtime_ns)

    def content_changed(self, ino: int) -> bool:
        """Whether the bytes of a regular file may differ from the image's; True if it does not have the inode.

        Blocks are not compared: a file whose blocks were written with what was there has changed.
        """
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is None or not node.based:
                return node is not None
            if node.kind is not Kind.REGULAR:
                return False
            size = self.base.attributes(ino).size
            return node.size != size or node.blocks.base_end != size or bool(node.blocks.chunks)

    def xattrs_changed(self, ino: int) -> bool:
        """Whether the extended attributes differ from the image's; for a new inode whether it has any."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is None or node.xattrs is None:
                return False
            return dict(node.xattrs) != (dict(self.base.xattrs(ino)) if node.based else {})

    def links_changed(self, ino: int) -> bool:
        """Whether the number of names differs from the image's; True if it does not have the inode."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is None or not node.based:
                return node is not None
            return node.nlink != self.base.attributes(ino).nlink

    def ranges(self, ino: int) -> list[Range]:
        """The bytes of a regular file that was changed or is new, by where they come from; none lie beyond its end.

        Of a file that was not changed, one range: the image's. Holes in what is the image's are its own to tell.
        """
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is None:
                size = self.base.attributes(ino).size
                return [Range(0, size, Source.IMAGE)] if size else []
            if node.kind is not Kind.REGULAR:
                return []
            found: list[Range] = []
            for block, count, entry in node.blocks.runs(0, -(-node.size // PAGE_SIZE)):
                start, end = block * PAGE_SIZE, min((block + count) * PAGE_SIZE, node.size)
                middle = start if entry else min(max(start, node.blocks.base_end), end)
                _append(found, start, middle, Source.IMAGE)
                _append(found, middle, end, Source.HOLE if entry in (0, HOLE) else Source.PRIVATE)
            return found

    @cached_property
    def _touched(self) -> set[int]:
        """Every directory that has changed, or has anything changed below it."""
        with self._lock:
            state = self._state
            touched: set[int] = set()
            files: set[int] = set()
            for ino, node in state.nodes.items():
                if node.kind is _DIRECTORY:
                    self._touch(ino, touched)
                elif node.based and node.nlink:
                    files.add(ino)
            # A changed file of the image may still have the names that it has there, in directories that did not
            # change. A name that it got is in a directory that did.
            for directory in self._naming(files):
                self._touch(directory, touched)
            return touched

    def _touch(self, directory: int, touched: set[int]) -> None:
        state = self._state
        while directory not in touched and directory not in state.gone:
            touched.add(directory)
            if directory == ROOT:
                break
            directory = state.parent(directory)

    def _naming(self, files: set[int]) -> Iterator[int]:
        """The directories of the image that have an entry for any of these."""
        left = sum(self.base.attributes(ino).nlink for ino in files)
        stack = [ROOT]
        while stack and left:
            directory = stack.pop()
            names = 0
            for entry in self.base.entries(directory):
                names += entry.ino in files
                if entry.kind is _DIRECTORY:
                    stack.append(entry.ino)
            if names:
                left -= names
                yield directory


def _append(ranges: list[Range], start: int, end: int, source: Source) -> None:
    """Append a range, joined to the last one if that is of the same source."""
    if start >= end:
        return
    if ranges and ranges[-1].source is source and ranges[-1].end == start:
        start = ranges.pop().start
    ranges.append(Range(start, end, source))

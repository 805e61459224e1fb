"""The half of an overlay that reads: private first, then the image's.

Nothing here waits for the image, or for the disk, with the overlay's lock held, unless a file is written to all the
time: what is private is read without the lock, and again if the file's blocks were changed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError
from pagepool.image.member import MAX_NAME, Kind
from pagepool.overlay.blockmap import HOLE
from pagepool.overlay.records import encode_forget
from pagepool.vfs.interface import PAGE_SIZE, Attributes, Entry, Usage, fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pagepool.overlay.node import Node
    from pagepool.overlay.storage import Storage
    from pagepool.vfs.interface import FileSystem

_TRIES: Final = 3


class OverlayReader:
    """What `FileSystem` asks for.

    Args:
        storage: closed with this.
        base: the image.
    """

    def __init__(self, storage: Storage, base: FileSystem) -> None:
        self.base = base
        """The image. Closed by whoever opened it."""
        self._storage = storage
        self._state = storage.state
        self._lock = storage.lock
        self._holds: dict[int, int] = {}

    @property
    def read_only(self) -> bool:
        """It is not."""
        return False

    @property
    def directory(self) -> Path:
        """Where it is kept."""
        return self._storage.directory

    def lookup(self, parent: int, name: bytes) -> int:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(parent)
            if node is None:
                self._check_base(parent)
            elif node.kind is not Kind.DIRECTORY:
                fail(errno.ENOTDIR, name)
            elif len(name) > MAX_NAME:
                fail(errno.ENAMETOOLONG, name)
            else:
                found = node.entries.get(name)
                if found is not None:
                    return found or fail(errno.ENOENT, name)
                if not node.based:
                    fail(errno.ENOENT, name)
        return self.base.lookup(parent, name)

    def attributes(self, ino: int) -> Attributes:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is not None:
                return node.attributes()
            self._check_base(ino)
        return self.base.attributes(ino)

    def parent(self, directory: int) -> int:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(directory)
            if node is not None:
                return node.parent if node.kind is Kind.DIRECTORY else fail(errno.ENOTDIR, directory)
            self._check_base(directory)
        return self.base.parent(directory)

    def readlink(self, ino: int) -> bytes:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is not None:
                return node.target if node.kind is Kind.SYMLINK else fail(errno.EINVAL, ino)
            self._check_base(ino)
        return self.base.readlink(ino)

    def entries(self, directory: int) -> Iterable[Entry]:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(directory)
            if node is None:
                self._check_base(directory)
                delta: dict[bytes, int] = {}
                based = True
            elif node.kind is not Kind.DIRECTORY:
                fail(errno.ENOTDIR, directory)
            else:
                delta, based = dict(node.entries), node.based
            found = [Entry(name, ino, self._state.kind(ino)) for name, ino in delta.items() if ino]
        if based:
            if not delta:
                return self.base.entries(directory)
            found += [entry for entry in self.base.entries(directory) if entry.name not in delta]
        found.sort()
        return found

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is not None and node.xattrs is not None:
                return MappingProxyType(node.xattrs)
            self._check_base(ino)
        return self.base.xattrs(ino)

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """See `FileSystem`. What is not all of the image's is a copy."""
        for _ in range(_TRIES):
            with self._lock:
                planned = self._plan_read(ino, offset, size)
                # With the lock: behind it somebody may change the file, and then this would be the later version.
                version = 0 if planned is None else planned[0].version
            if planned is None:
                return self.base.read(ino, offset, size)
            node, plan, end = planned
            # Slots are used for something else only after the file has let go of them: then it has another version.
            with contextlib.suppress(CorruptError):
                data = self._read_plan(node, plan, offset, end)
                if node.version == version:
                    return data
        with self._lock:
            planned = self._plan_read(ino, offset, size)
            if planned is not None:
                return self._read_plan(planned[0], planned[1], offset, planned[2])
        return self.base.read(ino, offset, size)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See `FileSystem`."""
        with self._lock:
            node = self._state.nodes.get(ino)
            if node is not None:
                check_regular(node)
                if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
                    fail(errno.EINVAL, ino)
                if not 0 <= offset < node.size:
                    fail(errno.ENXIO, ino)
                return self._seek(node, offset, whence)
            self._check_base(ino)
        return self.base.seek(ino, offset, whence)

    def usage(self) -> Usage:
        """See `FileSystem`. That of the file system that the overlay's directory is on."""
        found = os.statvfs(self._storage.directory)
        scale = found.f_frsize
        return Usage(
            found.f_blocks * scale // PAGE_SIZE, found.f_bavail * scale // PAGE_SIZE, found.f_files, found.f_ffree
        )

    def hold(self, ino: int) -> None:
        """See `FileSystem`."""
        with self._lock:
            if ino not in self._state.nodes:
                self._check_base(ino)
            self._holds[ino] = self._holds.get(ino, 0) + 1

    def release(self, ino: int, count: int = 1) -> None:
        """See `FileSystem`."""
        with self._lock:
            left = self._holds.get(ino, 0) - count
            if left > 0:
                self._holds[ino] = left
                return
            self._holds.pop(ino, None)
            if ino in self._state.orphans:
                # If the disk is full it stays until the next opening: this operation cannot fail.
                with contextlib.suppress(OSError):
                    self._storage.commit(encode_forget(ino), self._state.forget, (ino,))

    def _check_base(self, ino: int) -> None:
        """Whether the image has an inode that was not changed. ESTALE if not."""
        state = self._state
        if ino > state.base_inodes or (ino in state.gone and ino not in state.nodes):
            fail(errno.ESTALE, ino)

    def _plan_read(self, ino: int, offset: int, size: int) -> tuple[Node, list[tuple[int, int, int]], int] | None:
        """What to read for `read`, and up to where; None if all of the file is the image's."""
        node = self._state.nodes.get(ino)
        if node is None:
            self._check_base(ino)
            return None
        check_regular(node)
        if offset < 0 or size < 0:
            fail(errno.EINVAL, ino)
        end = max(offset, min(offset + size, node.size))
        return node, _plan(node, offset, end), end

    def _read_plan(self, node: Node, plan: list[tuple[int, int, int]], offset: int, end: int) -> memoryview:
        """The bytes of a plan."""
        read = self._storage.arena.read
        if len(plan) == 1:
            start, stop, entry = plan[0]
            if not entry:
                return self.base.read(node.ino, start, stop - start)
            if entry != HOLE:
                return memoryview(read(entry - 1, start % PAGE_SIZE, stop - start))
        found = memoryview(bytearray(end - offset))
        for start, stop, entry in plan:
            if entry == HOLE:
                continue
            if entry:
                data: bytes | memoryview = read(entry - 1, start % PAGE_SIZE, stop - start)
            else:
                data = self.base.read(node.ino, start, stop - start)
            found[start - offset : stop - offset] = data
        return found.toreadonly()

    def _seek(self, node: Node, offset: int, whence: int) -> int:
        """As `seek`, in a node of the state's."""
        table, blocks = node.blocks, -(-node.size // PAGE_SIZE)
        for block, count, entry in table.runs(offset // PAGE_SIZE, blocks):
            start, stop = max(offset, block * PAGE_SIZE), min((block + count) * PAGE_SIZE, node.size)
            if entry == HOLE:
                found = start if whence == os.SEEK_HOLE else stop
            elif entry:
                found = start if whence == os.SEEK_DATA else stop
            else:
                found = self._seek_base(node, start, min(stop, table.base_end), whence)
                if whence == os.SEEK_DATA and found >= table.base_end:
                    found = stop
            if found < stop:
                return found
        return node.size if whence == os.SEEK_HOLE else fail(errno.ENXIO, node.ino)

    def _seek_base(self, node: Node, start: int, stop: int, whence: int) -> int:
        """The next data or hole of the image's in a range; its end if there is none."""
        if start >= stop:
            return start
        try:
            return min(self.base.seek(node.ino, start, whence), stop)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return stop


def check_regular(node: Node) -> None:
    if node.kind is not Kind.REGULAR:
        fail(errno.EISDIR if node.kind is Kind.DIRECTORY else errno.EINVAL, node.ino)


def _plan(node: Node, offset: int, end: int) -> list[tuple[int, int, int]]:
    """(start, end, entry) of the parts of a range: entries as in `BlockMap`, but HOLE for all that reads as zeros.

    The entry of private blocks is that of the block where the part begins.
    """
    parts: list[tuple[int, int, int]] = []
    table = node.blocks
    for block, count, entry in table.runs(offset // PAGE_SIZE, -(-end // PAGE_SIZE)):
        start, stop = max(offset, block * PAGE_SIZE), min(end, (block + count) * PAGE_SIZE)
        if entry:
            parts.append((start, stop, entry))
            continue
        middle = min(max(start, table.base_end), stop)
        if start < middle:
            parts.append((start, middle, 0))
        if middle < stop:
            parts.append((middle, stop, HOLE))
    return parts

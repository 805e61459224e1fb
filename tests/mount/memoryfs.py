"""A file system in memory, for mounts: the simplest thing that is a `WritableFileSystem`, one big lock around it.

It is what a mount is tested against where the overlay would only be in the way: what went over the wire is what arrives
here. Nothing survives the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import RLock
from types import MappingProxyType

from typing_extensions import Buffer

from pagepool.image import Kind
from pagepool.vfs import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Attributes,
    Changes,
    Entry,
    Usage,
    fail,
)

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16


@dataclass
class MemoryNode:
    """An inode."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    nlink: int = 1
    parent: int = ROOT
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    holds: int = 0
    linkable: bool = False
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class MemoryFileSystem:
    """A directory tree in memory; implements `WritableFileSystem`."""

    def __init__(self) -> None:
        now = time.time_ns()
        root = MemoryNode(Kind.DIRECTORY, 0o755, 0, 0, nlink=2, atime=now, mtime=now, ctime=now)
        self.nodes = {ROOT: root}
        self.lock = RLock()
        self.syncs = 0
        self._next = ROOT + 1

    @property
    def read_only(self) -> bool:
        """It is not."""
        return False

    def node(self, ino: int) -> MemoryNode:
        """The inode of a number."""
        return self.nodes.get(ino) or fail(errno.ESTALE, ino)

    def _directory(self, ino: int) -> MemoryNode:
        node = self.node(ino)
        if node.kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, ino)
        return node

    def _file(self, ino: int) -> MemoryNode:
        node = self.node(ino)
        if node.kind is not Kind.REGULAR:
            fail(errno.EISDIR if node.kind is Kind.DIRECTORY else errno.EINVAL, ino)
        return node

    def lookup(self, parent: int, name: bytes) -> int:
        """See `FileSystem`."""
        if len(name) > 255:
            fail(errno.ENAMETOOLONG, name)
        return self._directory(parent).names.get(name) or fail(errno.ENOENT, name)

    def attributes(self, ino: int) -> Attributes:
        """See `FileSystem`."""
        with self.lock:
            node = self.node(ino)
            size = len(node.target) if node.kind is Kind.SYMLINK else len(node.data)
            return Attributes(
                *(ino, node.kind, node.mode, node.uid, node.gid, size, node.nlink),
                *(node.atime, node.mtime, node.ctime, *node.device, -(-len(node.data) // 512)),
            )

    def parent(self, directory: int) -> int:
        """See `FileSystem`."""
        return self._directory(directory).parent

    def readlink(self, ino: int) -> bytes:
        """See `FileSystem`."""
        node = self.node(ino)
        return node.target if node.kind is Kind.SYMLINK else fail(errno.EINVAL, ino)

    def entries(self, directory: int) -> list[Entry]:
        """See `FileSystem`."""
        with self.lock:
            names = sorted(self._directory(directory).names.items())
            return [Entry(name, ino, self.node(ino).kind) for name, ino in names]

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """See `FileSystem`."""
        with self.lock:
            return dict(self.node(ino).xattrs)

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """See `FileSystem`."""
        with self.lock:
            return memoryview(bytes(self._file(ino).data[offset : offset + size]))

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See `FileSystem`."""
        size = len(self._file(ino).data)
        if offset >= size:
            fail(errno.ENXIO, ino)
        return offset if whence == os.SEEK_DATA else size

    def usage(self) -> Usage:
        """See `FileSystem`."""
        return Usage(1 << 20, 1 << 19, 1 << 20, (1 << 20) - len(self.nodes))

    def hold(self, ino: int) -> None:
        """See `FileSystem`."""
        with self.lock:
            self.node(ino).holds += 1

    def release(self, ino: int, count: int = 1) -> None:
        """See `FileSystem`."""
        with self.lock:
            self.node(ino).holds -= count
            self._drop(ino)

    def close(self) -> None:
        """See `FileSystem`."""

    def create(
        self,
        parent: int,
        name: bytes,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        *,
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> int:
        """See `WritableFileSystem`."""
        with self.lock:
            directory = self._writable(parent, name)
            if name in directory.names:
                fail(errno.EEXIST, name)
            if directory.mode & stat.S_ISGID:
                gid = directory.gid
                mode |= stat.S_ISGID if kind is Kind.DIRECTORY else 0
            ino, now = self._next, time.time_ns()
            self._next += 1
            links = 2 if kind is Kind.DIRECTORY else 1
            self.nodes[ino] = MemoryNode(kind, mode, uid, gid, target, device, links, parent, now, now, now)
            self.nodes[ino].xattrs.update(xattrs)
            directory.names[name] = ino
            directory.nlink += kind is Kind.DIRECTORY
            directory.mtime = directory.ctime = now
            return ino

    def create_unnamed(self, parent: int, mode: int, uid: int, gid: int, *, linkable: bool = True) -> int:
        """See `WritableFileSystem`."""
        with self.lock:
            directory = self._writable(parent, b"")
            gid = directory.gid if directory.mode & stat.S_ISGID else gid
            ino, now = self._next, time.time_ns()
            self._next += 1
            node = MemoryNode(Kind.REGULAR, mode, uid, gid, nlink=0, atime=now, mtime=now, ctime=now)
            node.holds, node.linkable = 1, linkable
            self.nodes[ino] = node
            return ino

    def link(self, ino: int, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            directory, node = self._writable(parent, name), self.node(ino)
            if node.kind is Kind.DIRECTORY:
                fail(errno.EPERM, name)
            if name in directory.names:
                fail(errno.EEXIST, name)
            if not node.nlink and not node.linkable:
                fail(errno.ENOENT, name)
            node.linkable = False
            directory.names[name] = ino
            node.nlink += 1
            directory.mtime = directory.ctime = node.ctime = time.time_ns()

    def unlink(self, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            ino = self.lookup(parent, name)
            if self.node(ino).kind is Kind.DIRECTORY:
                fail(errno.EISDIR, name)
            self._remove(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            ino = self.lookup(parent, name)
            if self._directory(ino).names:
                fail(errno.ENOTEMPTY, name)
            self._remove(parent, name)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        *,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            if flags & RENAME_WHITEOUT and flags & RENAME_EXCHANGE:
                fail(errno.EINVAL, name)
            if self._rename(parent, name, new_parent, new_name, flags & ~RENAME_WHITEOUT) and flags & RENAME_WHITEOUT:
                self.create(parent, name, Kind.CHAR, 0, *owner)

    def _rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bool:
        """Whether anything was moved."""
        with self.lock:
            source, target = self._directory(parent), self._writable(new_parent, new_name)
            ino = self.lookup(parent, name)
            other = target.names.get(new_name)
            if self._is_within(new_parent, ino):
                fail(errno.EINVAL, name)
            if flags == RENAME_EXCHANGE:
                if other is None:
                    fail(errno.ENOENT, new_name)
                self._put(parent, name, other)
            elif other is not None:
                if flags == RENAME_NOREPLACE:
                    fail(errno.EEXIST, new_name)
                if other == ino:
                    return False
                self._may_replace(self.node(ino), self.node(other), new_name)
                self._remove(new_parent, new_name)
            if flags != RENAME_EXCHANGE:
                del source.names[name]
                source.nlink -= self.node(ino).kind is Kind.DIRECTORY
                target.nlink += self.node(ino).kind is Kind.DIRECTORY
            self._put(new_parent, new_name, ino)
            return True

    def set_attributes(self, ino: int, changes: Changes) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            node, now = self.node(ino), time.time_ns()
            if changes.size is not None:
                data = self._file(ino).data
                data[changes.size :] = bytes(max(0, changes.size - len(data)))
                node.mtime = now
            node.mode = node.mode if changes.mode is None else changes.mode
            node.uid = node.uid if changes.uid is None else changes.uid
            node.gid = node.gid if changes.gid is None else changes.gid
            node.atime = node.atime if changes.atime_ns is None else changes.atime_ns
            node.mtime = node.mtime if changes.mtime_ns is None else changes.mtime_ns
            node.ctime = now
            if changes.kill_privileges:
                self._kill_privileges(node)

    def write(self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False) -> int:
        """See `WritableFileSystem`."""
        with self.lock:
            node, view = self._file(ino), bytes(data)
            if offset > len(node.data):
                node.data += bytes(offset - len(node.data))
            node.data[offset : offset + len(view)] = view
            node.mtime = node.ctime = time.time_ns()
            if kill_privileges:
                self._kill_privileges(node)
            return len(view)

    def append(self, ino: int, data: Buffer) -> int:
        """See `WritableFileSystem`."""
        with self.lock:
            node = self._file(ino)
            node.data += bytes(data)
            node.mtime = node.ctime = time.time_ns()
            return len(node.data)

    def allocate(self, ino: int, offset: int, size: int, mode: int) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            node, end = self._file(ino), offset + size
            if mode not in (0, _KEEP_SIZE, _PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
                fail(errno.EOPNOTSUPP, ino)
            if mode & (_PUNCH_HOLE | _ZERO_RANGE):
                zeros = max(0, min(end, len(node.data)) - offset)
                node.data[offset : offset + zeros] = bytes(zeros)
            if not mode & _KEEP_SIZE:
                node.data += bytes(max(0, end - len(node.data)))
            node.mtime = node.ctime = time.time_ns()

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            node = self.node(ino)
            if name in node.xattrs and flags == XATTR_CREATE:
                fail(errno.EEXIST, name)
            if name not in node.xattrs and flags == XATTR_REPLACE:
                fail(errno.ENODATA, name)
            node.xattrs[name] = value
            node.ctime = time.time_ns()

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            if self.node(ino).xattrs.pop(name, None) is None:
                fail(errno.ENODATA, name)
            self.node(ino).ctime = time.time_ns()

    def sync(self) -> None:
        """See `WritableFileSystem`."""
        with self.lock:
            self.syncs += 1

    def _writable(self, parent: int, name: bytes) -> MemoryNode:
        directory = self._directory(parent)
        if len(name) > 255:
            fail(errno.ENAMETOOLONG, name)
        return directory if directory.nlink else fail(errno.ENOENT, name)

    def _put(self, parent: int, name: bytes, ino: int) -> None:
        directory, node, now = self.node(parent), self.node(ino), time.time_ns()
        old = directory.names.get(name)
        if old is not None:  # an exchange
            directory.nlink += (node.kind is Kind.DIRECTORY) - (self.node(old).kind is Kind.DIRECTORY)
        directory.names[name] = ino
        if node.kind is Kind.DIRECTORY:
            node.parent = parent
        directory.mtime = directory.ctime = node.ctime = now

    def _remove(self, parent: int, name: bytes) -> None:
        directory, now = self.node(parent), time.time_ns()
        ino = directory.names.pop(name)
        node = self.node(ino)
        if node.kind is Kind.DIRECTORY:
            directory.nlink -= 1
            node.nlink = 0
        else:
            node.nlink -= 1
        directory.mtime = directory.ctime = node.ctime = now
        self._drop(ino)

    def _drop(self, ino: int) -> None:
        node = self.nodes[ino]
        if not node.nlink and not node.holds:
            del self.nodes[ino]

    def _is_within(self, directory: int, ino: int) -> bool:
        while directory != ino and directory != ROOT:
            directory = self.node(directory).parent
        return directory == ino

    @staticmethod
    def _may_replace(node: MemoryNode, other: MemoryNode, name: bytes) -> None:
        if other.kind is Kind.DIRECTORY:
            if node.kind is not Kind.DIRECTORY:
                fail(errno.EISDIR, name)
            if other.names:
                fail(errno.ENOTEMPTY, name)
        elif node.kind is Kind.DIRECTORY:
            fail(errno.ENOTDIR, name)

    @staticmethod
    def _kill_privileges(node: MemoryNode) -> None:
        if node.kind is not Kind.DIRECTORY:
            node.mode &= ~stat.S_ISUID
            if node.mode & stat.S_IXGRP:
                node.mode &= ~stat.S_ISGID
            node.xattrs.pop(b"security.capability", None)


@contextlib.contextmanager
def open_memory() -> Iterator[MemoryFileSystem]:
    """A file system in memory, for a process that serves it in the background."""
    yield MemoryFileSystem()

"""An image as a file system: a tree file and the bytes of its objects. Read-only.

Inodes are the tree's nodes. What an image does not say is filled in: access and change times are the modification
time. A file's bytes are those of its object, and come from `Content`; nothing is fetched to list or stat.

Thread-safe: a tree never changes.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind
from pagepool.image.treefile import TreeNode
from pagepool.vfs.interface import PAGE_SIZE, Attributes, Entry, Usage, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pagepool.image.treefile import TreeFile
    from pagepool.vfs.interface import Content

MAX_NAME: Final = 255
_EMPTY: Final = memoryview(b"")
_KEPT: Final = 8192


class TreeFileSystem:
    """A tree, read-only; implements `FileSystem`.

    Args:
        tree: closed by the caller.
        content: the bytes of its objects; closed with this.
    """

    def __init__(self, tree: TreeFile, content: Content) -> None:
        self.tree = tree
        self.content = content
        self._node: Callable[[int], TreeNode] = lru_cache(_KEPT)(tree.node)
        self._child: Callable[[int, bytes], int] = lru_cache(_KEPT)(tree.child)
        self.attributes: Callable[[int], Attributes] = lru_cache(_KEPT)(self._attributes)

    @property
    def read_only(self) -> bool:
        """It is."""
        return True

    def node(self, ino: int) -> TreeNode:
        """The tree's node. ESTALE if there is none."""
        if not 0 < ino <= self.tree.node_count:
            fail(errno.ESTALE, ino)
        return self._node(ino)

    def lookup(self, parent: int, name: bytes) -> int:
        """See `FileSystem`."""
        if self.node(parent).kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, name)
        if len(name) > MAX_NAME:
            fail(errno.ENAMETOOLONG, name)
        return self._child(parent, name) or fail(errno.ENOENT, name)

    def _attributes(self, ino: int) -> Attributes:
        node = self.node(ino)
        time = node.mtime_ns
        blocks = -(-node.size // PAGE_SIZE) * (PAGE_SIZE // 512) if node.kind is Kind.REGULAR else 0
        return Attributes(
            *(ino, node.kind, node.mode, node.uid, node.gid, node.size, node.nlink),
            *(time, time, time, node.devmajor, node.devminor, blocks),
        )

    def parent(self, directory: int) -> int:
        """See `FileSystem`."""
        if self.node(directory).kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, directory)
        return self.tree.parent(directory)

    def readlink(self, ino: int) -> bytes:
        """See `FileSystem`."""
        node = self.node(ino)
        if node.kind is not Kind.SYMLINK:
            fail(errno.EINVAL, ino)
        return node.target

    def entries(self, directory: int) -> Iterator[Entry]:
        """See `FileSystem`."""
        if self.node(directory).kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, directory)
        return (Entry(name, ino, self.tree.kind(ino)) for name, ino in self.tree.entries(directory))

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """See `FileSystem`."""
        self.node(ino)
        return self.tree.xattrs(ino)

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """See `FileSystem`."""
        node = self._file(ino)
        if offset < 0 or size < 0:
            fail(errno.EINVAL, ino)
        end = min(offset + size, node.size)
        return self.content.view(node.object, offset, end) if offset < end else _EMPTY

    def whole(self, ino: int) -> memoryview | None:
        """All bytes of a regular file if they are here; nothing is fetched."""
        node = self._file(ino)
        return self.content.whole(node.object) if node.size else _EMPTY

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See `FileSystem`. A file of an image is all data, with the hole that every file has at its end."""
        size = self._file(ino).size
        if not 0 <= offset < size:
            fail(errno.ENXIO, ino)
        if whence == os.SEEK_DATA:
            return offset
        return size if whence == os.SEEK_HOLE else fail(errno.EINVAL, ino)

    def usage(self) -> Usage:
        """See `FileSystem`. All of it is in use."""
        return Usage(-(-self.tree.object_bytes // PAGE_SIZE), 0, self.tree.node_count, 0)

    def hold(self, ino: int) -> None:
        """See `FileSystem`. Nothing goes away here."""

    def release(self, ino: int, count: int = 1) -> None:
        """See `FileSystem`."""

    def close(self) -> None:
        """See `FileSystem`. The tree stays open."""
        self.content.close()

    def _file(self, ino: int) -> TreeNode:
        node = self.node(ino)
        if node.kind is not Kind.REGULAR:
            fail(errno.EISDIR if node.kind is Kind.DIRECTORY else errno.EINVAL, ino)
        return node

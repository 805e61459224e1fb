"""An image as a file system: a tree file and the bytes of its objects. Read-only.

Inodes are the tree's nodes. What an image does not say is filled in: access and change times are the modification
time. Attributes that no file can have are left out. A file's bytes are those of its object, and come from `Content`;
nothing is fetched to list or stat.

Thread-safe: a tree never changes.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pagepool.extents import EXTENT_SIZE
from pagepool.image.member import Kind
from pagepool.image.treefile import TreeNode
from pagepool.image.xattrs import only_possible
from pagepool.vfs.interface import PAGE_SIZE, Attributes, Entry, Usage, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pagepool.image.treefile import TreeFile
    from pagepool.vfs.interface import Content

MAX_NAME: Final = 255
_EMPTY: Final = memoryview(b"")
_KEPT: Final = 8192
_EDGES_KEPT: Final = 16
_BLOCK: Final = 512


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
        self._edges: Callable[[int], list[int]] = lru_cache(_EDGES_KEPT)(self._find_edges)
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
        blocks = self._blocks(node) if node.kind is Kind.REGULAR else 0
        return Attributes(
            *(ino, node.kind, node.mode, node.uid, node.gid, node.size, node.nlink),
            *(time, time, time, node.devmajor, node.devminor, blocks),
        )

    def _blocks(self, node: TreeNode) -> int:
        """What a regular file takes; nothing for its holes."""
        size = -(-node.size // PAGE_SIZE) * PAGE_SIZE
        if node.size >= EXTENT_SIZE:
            size -= sum(end - first for first, end in self.tree.holes(node.object)) * EXTENT_SIZE
        return size // _BLOCK

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
        kind = self.node(ino).kind
        found = self.tree.xattrs(ino)
        return only_possible(kind, found) if found else found

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
        """See `FileSystem`. A hole of an image's file is an extent of zeros, and what every file has at its end."""
        node = self._file(ino)
        if not 0 <= offset < node.size:
            fail(errno.ENXIO, ino)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            fail(errno.EINVAL, ino)
        edges = self._edges(node.object)
        following = bisect_right(edges, offset)
        if following % 2 == (whence == os.SEEK_DATA):
            return offset
        return edges[following] if following < len(edges) else fail(errno.ENXIO, ino)

    def _find_edges(self, index: int) -> list[int]:
        """Where data of an object begins and ends, by turns."""
        edges = [0]
        for first, end in self.tree.holes(index):
            if edges[-1] == first * EXTENT_SIZE:
                edges[-1] = end * EXTENT_SIZE
            else:
                edges += (first * EXTENT_SIZE, end * EXTENT_SIZE)
        _, size = self.tree.object_key(index)
        if edges[-1] < size:
            edges.append(size)
        else:
            edges.pop()
        return edges

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

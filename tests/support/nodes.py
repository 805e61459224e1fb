"""A file system in memory that can be changed, and remembers what was touched: an oracle for diffs of overlays.

Nodes are those of `pagepool.image`; a copy of a tree keeps the numbers of its nodes. Shares nothing with
`pagepool.overlay`: no journal, no blocks, only a graph.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING

from pagepool.image import Kind, Node, Tree
from pagepool.vfs import Attributes, Entry, Usage, fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class NodeFileSystem:
    """Nodes as a file system, implements `FileSystem`; and as an overlay over what they were, `Touched`.

    Args:
        root: the root; numbered here unless it is.
    """

    def __init__(self, root: Node, data: dict[Node, bytes]) -> None:
        if not root.number:
            Tree(root)
        self.root = root
        self.data = data
        self.changed: set[int] = set()
        self._index()
        self._numbers = itertools.count(max(self.nodes) + 1)

    def copy(self) -> NodeFileSystem:
        """The same inodes, to be changed without changing these."""
        copies: dict[Node, Node] = {}
        for node in self.nodes.values():
            fields = {name: getattr(node, name) for name in Node.__dataclass_fields__}
            copies[node] = Node(**fields)
        for node, other in copies.items():
            if node.children is not None:
                other.children = {name: copies[child] for name, child in node.children.items()}
        return NodeFileSystem(
            copies[self.root], {copy: self.data[node] for node, copy in copies.items() if node in self.data}
        )

    def new(self, kind: Kind, data: bytes = b"", **fields: int) -> Node:
        """A node without a name."""
        node = Node(kind, 0o644, children={} if kind is Kind.DIRECTORY else None)
        for name, value in fields.items():
            setattr(node, name, value)
        node.number = next(self._numbers)
        self._set(node, data)
        return node

    def write(self, node: Node, data: bytes) -> None:
        """Replace a file's content."""
        self._set(node, data)
        self.touch(node)

    def touch(self, node: Node) -> None:
        """Something of it changed."""
        self.changed.add(node.number)

    def put(self, directory: Node, name: bytes, node: Node) -> None:
        """Give a node a name, instead of what has it."""
        self.remove(directory, name)
        assert directory.children is not None
        directory.children[name] = node
        self.touch(directory)
        self.touch(node)

    def remove(self, directory: Node, name: bytes) -> Node | None:
        """Take a name away, and of a directory everything in it."""
        assert directory.children is not None
        node = directory.children.pop(name, None)
        if node is not None:
            self.touch(directory)
            self.touch(node)
        return node

    def forget(self, node: Node) -> None:
        """Note that everything below a removed directory lost its names."""
        for name, child in list((node.children or {}).items()):
            self.remove(node, name)
            self.forget(child)

    def settle(self) -> None:
        """Count links and parents again, after changes."""
        self._index()

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name, the root first."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            for name, child in (node.children or {}).items():
                stack.append((path + b"/" + name if path else name, child))

    # -- Touched

    def touched(self) -> set[int]:
        """See `Touched`: only numbers that were there before."""
        return {number for number in self.changed if number <= self.kept}

    kept = 0
    """The highest number of the base."""

    def has_own_content(self, ino: int) -> bool:
        """See `Touched`."""
        return ino in self.changed

    # -- FileSystem

    read_only = True

    def lookup(self, parent: int, name: bytes) -> int:
        """See `FileSystem`."""
        node = self.nodes[parent].entry(name)
        return node.number if node else fail(errno.ENOENT, name)

    def attributes(self, ino: int) -> Attributes:
        """See `FileSystem`."""
        if ino not in self.nodes:
            fail(errno.ESTALE, ino)
        node = self.nodes[ino]
        time = node.mtime_ns
        size = len(self.data.get(node, b"")) or len(node.target)
        return Attributes(
            *(ino, node.kind, node.mode, node.uid, node.gid, size, node.nlink),
            *(time, time, time, node.devmajor, node.devminor),
        )

    def parent(self, directory: int) -> int:
        """See `FileSystem`."""
        return self.parents[directory]

    def readlink(self, ino: int) -> bytes:
        """See `FileSystem`."""
        return self.nodes[ino].target

    def entries(self, directory: int) -> list[Entry]:
        """See `FileSystem`."""
        children = self.nodes[directory].children
        assert children is not None
        return [Entry(name, child.number, child.kind) for name, child in sorted(children.items())]

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """See `FileSystem`."""
        return self.nodes[ino].xattrs

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """See `FileSystem`."""
        return memoryview(self.data.get(self.nodes[ino], b""))[offset : offset + size]

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See `FileSystem`: all is data."""
        size = self.attributes(ino).size
        if offset >= size:
            fail(errno.ENXIO, ino)
        return offset if whence == os.SEEK_DATA else size

    def usage(self) -> Usage:
        """See `FileSystem`."""
        return Usage(0, 0, len(self.nodes), 0)

    def hold(self, ino: int) -> None:
        """See `FileSystem`."""

    def release(self, ino: int, count: int = 1) -> None:
        """See `FileSystem`."""

    def close(self) -> None:
        """See `FileSystem`."""

    def _set(self, node: Node, data: bytes) -> None:
        if node.kind is Kind.SYMLINK:
            node.target, node.size = data or b"nowhere", len(data or b"nowhere")
        elif node.kind is Kind.REGULAR:
            self.data[node], node.size = data, len(data)

    def _index(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.parents = {self.root.number: self.root.number}
        counts: dict[int, int] = {}
        for _, node in self.walk():
            self.nodes[node.number] = node
            counts[node.number] = counts.get(node.number, 0) + 1
            for child in (node.children or {}).values():
                self.parents[child.number] = node.number
        for number, node in self.nodes.items():
            subdirectories = sum(child.children is not None for child in (node.children or {}).values())
            node.nlink = counts[number] if node.children is None else 2 + subdirectories

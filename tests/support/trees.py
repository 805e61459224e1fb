"""Small images in memory: a tree file out of nodes, and the bytes of its objects, without a service."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.vfs import TreeFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class MemoryContent:
    """Objects in memory; implements `Content`.

    Args:
        tree: whose objects they are.
        objects: content by raw BLAKE3 digest.
    """

    def __init__(self, tree: TreeFile, objects: Mapping[bytes, bytes]) -> None:
        self._views = [memoryview(objects[tree.object(index).digest]) for index in range(tree.object_count)]

    def view(self, index: int, start: int, end: int) -> memoryview:
        """See `Content`."""
        return self._views[index][start:end]

    def whole(self, index: int) -> memoryview:
        """See `Content`."""
        return self._views[index]

    def prefetch(self, indices: Iterable[int]) -> None:
        """See `Content`."""

    def close(self) -> None:
        """See `Content`."""


class TreeBuilder:
    """Builds a tree node by node. Parents that are not there are made."""

    def __init__(self) -> None:
        self.root = Node(Kind.DIRECTORY, 0o755, children={})
        self.objects: dict[bytes, bytes] = {}

    def directory(self, path: str, mode: int = 0o755, **fields: object) -> Node:
        """A directory; the one that is there, with other fields."""
        node = self.root
        for name in filter(None, os.fsencode(path).split(b"/")):
            assert node.children is not None
            node = node.children.setdefault(name, Node(Kind.DIRECTORY, 0o755, children={}))
        node.mode = mode
        return _with(node, fields)

    def file(self, path: str, data: bytes = b"", mode: int = 0o644, **fields: object) -> Node:
        """A regular file."""
        digest = blake3_raw(data) if data else None
        if digest is not None:
            self.objects[digest] = data
        return self.add(path, _with(Node(Kind.REGULAR, mode, size=len(data), object=digest), fields))

    def symlink(self, path: str, target: str, **fields: object) -> Node:
        """A symlink."""
        return self.add(path, _with(Node(Kind.SYMLINK, 0o777, size=len(target), target=os.fsencode(target)), fields))

    def device(self, path: str, kind: Kind, device: tuple[int, int], mode: int = 0o600, **fields: object) -> Node:
        """A device or FIFO."""
        return self.add(path, _with(Node(kind, mode, devmajor=device[0], devminor=device[1]), fields))

    def add(self, path: str, node: Node) -> Node:
        """Give a node a name: a further one makes a hard link."""
        parent, _, name = path.strip("/").rpartition("/")
        directory = self.root
        for part in filter(None, os.fsencode(parent).split(b"/")):
            assert directory.children is not None
            directory = directory.children.setdefault(part, Node(Kind.DIRECTORY, 0o755, children={}))
        assert directory.children is not None
        directory.children[os.fsencode(name)] = node
        return node

    def build(self) -> TreeFile:
        """The tree file."""
        data = encode_tree(Tree(self.root), self._runs)
        return TreeFile(data, blake3_raw(data))

    def file_system(self) -> TreeFileSystem:
        """The tree as a file system."""
        tree = self.build()
        return TreeFileSystem(tree, MemoryContent(tree, self.objects))

    def _runs(self, digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        data = self.objects[digest]
        return [(1, blake3_raw(data[start : start + EXTENT_SIZE])) for start in range(0, size, EXTENT_SIZE)]


def _with(node: Node, fields: Mapping[str, object]) -> Node:
    for name, value in fields.items():
        setattr(node, name, value)
    return node

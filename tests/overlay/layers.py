"""Layers out of diffs, and file systems, in one form to compare."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pagepool.image import Kind, Node
from pagepool.overlay import iter_layer, plan_diff
from tests.support.nodes import NodeFileSystem

if TYPE_CHECKING:
    from pagepool.overlay import Touched
    from pagepool.vfs import FileSystem
    from tests.image.umoci import Row


def empty() -> NodeFileSystem:
    """A root without anything in it."""
    return NodeFileSystem(Node(Kind.DIRECTORY, 0o755, children={}), {})


def make_layer(now: FileSystem, base: FileSystem, hints: Touched | None = None) -> bytes:
    """The layer that makes one file system of another."""
    return b"".join(iter_layer(now, plan_diff(now, base, hints)))


def whole_layer(system: FileSystem) -> bytes:
    """A file system as the only layer of an image."""
    return make_layer(system, empty())


def rows(system: NodeFileSystem) -> dict[bytes, Row]:
    """Every name that an image can have, and what there is to know of its inode."""
    names: dict[int, set[bytes]] = defaultdict(set)
    found = [(path or b".", node) for path, node in system.walk() if node.kind is not Kind.SOCKET]
    for path, node in found:
        names[node.number].add(path)
    return {path: _row(system, node, frozenset(names[node.number])) for path, node in found}


def _row(system: NodeFileSystem, node: Node, names: frozenset[bytes]) -> Row:
    content: object = None
    if node.kind is Kind.REGULAR:
        content = system.data[node]
    elif node.kind is Kind.SYMLINK:
        content = node.target
    elif node.kind in (Kind.CHAR, Kind.BLOCK):
        content = (node.devmajor, node.devminor)
    xattrs = {name: value for name, value in node.xattrs.items() if name != b"security.selinux"}
    mode = 0o777 if node.kind is Kind.SYMLINK else node.mode
    return (node.kind, mode, node.uid, node.gid, node.mtime_ns, content, xattrs, names)

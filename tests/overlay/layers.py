"""Layers out of diffs, and file systems, in one form to compare."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pagepool.image import Kind, Node
from pagepool.overlay import iter_layer, plan_diff
from pagepool.vfs import ROOT
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


def rows(system: FileSystem) -> dict[bytes, Row]:
    """Every name that an image can have, and what there is to know of its inode."""
    names: dict[int, set[bytes]] = defaultdict(set)
    found: list[tuple[bytes, int]] = []
    stack = [(b".", ROOT)]
    while stack:
        path, ino = stack.pop()
        found.append((path, ino))
        names[ino].add(path)
        if system.attributes(ino).kind is Kind.DIRECTORY:
            prefix = b"" if path == b"." else path + b"/"
            below = [entry for entry in system.entries(ino) if entry.kind is not Kind.SOCKET]
            stack += [(prefix + entry.name, entry.ino) for entry in below]
    return {path: _row(system, ino, frozenset(names[ino])) for path, ino in found}


def _row(system: FileSystem, ino: int, names: frozenset[bytes]) -> Row:
    attributes = system.attributes(ino)
    kind = attributes.kind
    content: object = None
    if kind is Kind.REGULAR:
        content = bytes(system.read(ino, 0, attributes.size))
        assert len(content) == attributes.size
    elif kind is Kind.SYMLINK:
        content = system.readlink(ino)
    elif kind in (Kind.CHAR, Kind.BLOCK):
        content = (attributes.devmajor, attributes.devminor)
    xattrs = {name: value for name, value in system.xattrs(ino).items() if name != b"security.selinux"}
    mode = 0o777 if kind is Kind.SYMLINK else attributes.mode
    return (kind, mode, attributes.uid, attributes.gid, attributes.mtime_ns, content, xattrs, names)

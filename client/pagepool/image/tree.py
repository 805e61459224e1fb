"""The merged file system of an image: nodes, names, and how a path finds its node.

A node is an inode: hard links are one node under several names. `merge` builds trees; once `Tree` has been made of its
root, nothing changes any more, and any number of threads may read it.

Order is by name, as bytes, everywhere. Paths are relative to the root as in `member`; a leading slash is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pagepool.errors import PathUnknownError
from pagepool.image.member import NO_XATTRS, Kind, show_name

# As Linux has it: a longer chain could not be opened in the container either.
MAX_LINKS = 40


@dataclass(slots=True, eq=False)
class Node:
    """One inode. Compared by identity. Read-only for all but `merge`.

    Args:
        kind: any but `Kind.HARDLINK`.
        mode: permission bits with setuid, setgid and sticky.
        uid: owner.
        gid: group.
        mtime_ns: modification time in nanoseconds.
        size: bytes of a regular file; length of a symlink's target; else 0.
        object: raw BLAKE3 digest of a regular file's content. None for an empty file, for a file whose data its
            recipe keeps as literal, and for every other kind.
        target: of a symlink, as it was written.
        devmajor: of a device.
        devminor: of a device.
        xattrs: extended attributes.
        children: of a directory, its entries; None for every other kind.
        number: inode number, from 1 (the root) in the order of `Tree.walk`.
        nlink: how many names the node has; for a directory two and one for each directory in it.
    """

    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    object: bytes | None = None
    target: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    children: dict[bytes, Node] | None = None
    number: int = 0
    nlink: int = 0

    def entry(self, name: bytes) -> Node | None:
        """The node of that name in this directory; None where there is none, or this is no directory."""
        return None if self.children is None else self.children.get(name)


def resolve_path(root: Node, path: bytes) -> tuple[list[bytes], list[Node | None]]:
    """Follow every symlink in a path, inside the root.

    ``..`` at the root stays there, absolute targets begin at the root. What does not exist is taken as it is spelled.

    Args:
        root: a directory.
        path: the path.

    Returns:
        the components of the resolved path, and the node before each and after the last: the root first, None where
        there is none.

    Raises:
        PathUnknownError: too many symlinks.
    """
    names: list[bytes] = []
    nodes: list[Node | None] = [root]
    todo = path.split(b"/")[::-1]
    links = 0
    while todo:
        name = todo.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del names[-1:], nodes[max(1, len(nodes) - 1) :]
            continue
        here = nodes[-1]
        node = None if here is None else here.entry(name)
        if node is not None and node.kind is Kind.SYMLINK:
            links += 1
            if links > MAX_LINKS:
                raise PathUnknownError(f"{show_name(path)!r} (too many symbolic links)")
            if node.target.startswith(b"/"):
                names, nodes = [], [root]
            todo += node.target.split(b"/")[::-1]
            continue
        names.append(name)
        nodes.append(node)
    return names, nodes


class Tree:
    """A merged file system.

    Args:
        root: its root directory. The tree numbers its nodes and counts their links, and owns them from here on.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.size = 0
        """How many nodes there are."""
        self._number()

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name in the tree, a directory before what is in it, the root (``b""``) first."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                stack += [(prefix + name, child) for name, child in sorted(node.children.items(), reverse=True)]

    def lookup(self, path: bytes, follow: bool = True) -> Node:
        """The node that a path names; symlinks in it are followed inside the root.

        Args:
            path: the path.
            follow: whether the last component is followed too, if it is a symlink.

        Raises:
            PathUnknownError: there is none, or too many symlinks.
        """
        node: Node | None
        if follow:
            node = resolve_path(self.root, path)[1][-1]
        else:
            directory, _, name = path.rstrip(b"/").rpartition(b"/")
            if name in (b"", b".", b".."):
                return self.lookup(path)
            parent = resolve_path(self.root, directory)[1][-1]
            node = None if parent is None else parent.entry(name)
        if node is None:
            raise PathUnknownError(repr(show_name(path)))
        return node

    def list(self, path: bytes) -> list[tuple[bytes, Node]]:
        """The entries of a directory, by name; of anything else its last component and itself, as ``ls`` has it.

        Raises:
            PathUnknownError: there is no such path.
        """
        node = self.lookup(path)
        if node.children is None:
            return [(path.rstrip(b"/").rpartition(b"/")[2], node)]
        return sorted(node.children.items())

    def _number(self) -> None:
        for _, node in self.walk():
            if not node.number:
                self.size += 1
                node.number = self.size
            if node.children is None:
                node.nlink += 1
            else:
                node.nlink = 2 + sum(child.children is not None for child in node.children.values())

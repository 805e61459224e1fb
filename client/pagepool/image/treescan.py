"""A whole tree file in one go: its records in order, for what has to see every node (images of it, dumps).

`TreeFile` answers questions about one node; this reads the same sections (docs/format/tree.md) end to end, at about a
microsecond a record. Immutable. Out of bytes that are no tree come wrong answers or CorruptError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pagepool.errors import CorruptError
from pagepool.image.treefile import DIGEST_SIZE, ENTRY, HEADER, KINDS, NODE, OBJECT, RUN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.image.treefile import TreeFile

DIRECTORY, REGULAR, SYMLINK, CHAR, BLOCK, FIFO = range(len(KINDS))
"""Kinds as they stand in node records."""


class NodeRecord(NamedTuple):
    """A node as it stands in the file (docs/format/tree.md).

    Args:
        kind: one of those above.
        mode: permission bits with setuid, setgid and sticky.
        links: how many names it has.
        uid: owner.
        gid: group.
        seconds: of the modification time, since 1970.
        ns: the rest of it, nanoseconds.
        xattrs: the place of its extended attributes, plus one; 0: none.
        size: bytes of a regular file, or of a symlink's target.
        first: of a directory its first entry; of a regular file its object, plus one, 0 if it is empty; of a symlink
            where its target begins; of a device the major number.
        second: of a directory how many entries it has; of a symlink bytes of the target; of a device the minor number.
        parent: of a directory, the one that it is in; 0 of the root.
    """

    kind: int
    mode: int
    links: int
    uid: int
    gid: int
    seconds: int
    ns: int
    xattrs: int
    size: int
    first: int
    second: int
    parent: int


class TreeScan:
    """The tables of a tree file.

    Args:
        tree: it has to stay open.

    Raises:
        CorruptError: it was closed.
    """

    def __init__(self, tree: TreeFile) -> None:
        if not tree.node_count:
            raise CorruptError("tree", "", "it was closed")
        _, _, nodes, entries, objects, runs, extents, xattrs, _, _ = HEADER.unpack_from(tree.raw)
        self._raw = tree.raw
        self._entries_at = HEADER.size + nodes * NODE.size
        self._objects_at = self._entries_at + entries * ENTRY.size
        self._runs_at = self._objects_at + objects * OBJECT.size
        strings_at = self._runs_at + runs * RUN.size + extents * DIGEST_SIZE + xattrs
        self._strings = bytes(tree.raw[strings_at:])
        self._entry_count, self.node_count = entries, nodes

    def nodes(self) -> Iterator[NodeRecord]:
        """Every node's record, by number.

        Raises:
            CorruptError: one is of a kind that does not exist.
        """
        for record in map(NodeRecord._make, NODE.iter_unpack(self._raw[HEADER.size : self._entries_at])):
            if record.kind >= len(KINDS):
                raise CorruptError("tree", "", f"a node is of kind {record.kind}")
            yield record

    def entries(self, number: int, first: int, count: int) -> list[tuple[bytes, int]]:
        """(name, node number) of a directory's entries, by name.

        Args:
            number: of the directory.
            first, count: out of its record.

        Raises:
            CorruptError: they are not there, or lead nowhere.
        """
        if first + count > self._entry_count:
            raise CorruptError("tree", "", f"the entries of node {number} are not there")
        start = self._entries_at + first * ENTRY.size
        records = ENTRY.iter_unpack(self._raw[start : start + count * ENTRY.size])
        strings = self._strings
        found = [(strings[offset : offset + size], child) for offset, child, size in records]
        if any(not name or not 0 < child <= self.node_count for name, child in found):
            raise CorruptError("tree", "", f"an entry of node {number} has no name or leads nowhere")
        return found

    def string(self, offset: int, size: int) -> bytes:
        """A symlink's target.

        Raises:
            CorruptError: it is not there.
        """
        found = self._strings[offset : offset + size]
        if len(found) != size:
            raise CorruptError("tree", "", "a name lies outside of it")
        return found

    def objects(self) -> list[tuple[bytes, int]]:
        """Digest and size of every object, by digest."""
        records = OBJECT.iter_unpack(self._raw[self._objects_at : self._runs_at])
        return [(digest, size) for digest, size, _, _ in records]

"""A whole tree file in one go: its records in order, for what has to see every node (images of it, dumps).

`TreeFile` answers questions about one node; this reads the same sections (docs/format/tree.md) end to end, at about a
microsecond a record. Immutable. Out of bytes that are no tree come wrong answers or CorruptError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.image.treefile import DIGEST_SIZE, ENTRY, HEADER, KINDS, NODE, OBJECT, RUN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.image.treefile import TreeFile

DIRECTORY, REGULAR, SYMLINK, CHAR, BLOCK, FIFO = range(len(KINDS))
"""Kinds as they stand in node records."""


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

    def nodes(self) -> Iterator[tuple[int, ...]]:
        """Every node's record, by number: kind, mode, links, owner, group, seconds, nanoseconds, place of xattrs, size,
        first, second, parent (docs/format/tree.md says what the last three are of which kind).

        Raises:
            CorruptError: one is of a kind that does not exist.
        """
        for record in NODE.iter_unpack(self._raw[HEADER.size : self._entries_at]):
            if record[0] >= len(KINDS):
                raise CorruptError("tree", "", f"a node is of kind {record[0]}")
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

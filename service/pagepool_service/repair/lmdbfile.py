"""Read an LMDB data file page by page, without LMDB: what is damaged is passed over, and ends no process.

The format is that of LMDB 0.9, data format 1, on a 64-bit little-endian machine: `mdb.c`, MDB_page, MDB_node, MDB_meta,
MDB_db. Every page is read with pread(2): a disk that cannot read one gives an error, not a signal.

    page   0-7 its number, 8-9 padding, 10-11 flags, 12-13 end of the table of places, 14-15 begin of the nodes
           (of an overflow page 12-15: how many pages it has); from 16 on the places of its nodes, 2 bytes each
    node   0-1 and 2-3 size of the value (leaf), or with 4-5 number of the page below (branch); 4-5 flags (leaf);
           6-7 size of the key; key; value, or with flag 1 the number of its overflow page
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUBTREE = 1, 2
_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_META = struct.Struct("<IIQQ")
_DB = struct.Struct("<IHHQQQQQ")
_TAIL = struct.Struct("<QQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NONE = (1 << 64) - 1
_USUAL_PAGE = 4096
_DEEPEST = 64
_LARGEST = 256 << 20  # bytes of a value
_U64 = struct.Struct("<Q")


class Node(NamedTuple):
    """A node of a leaf: its flags, key, the size of its value, and the value, or the number of its overflow page."""

    flags: int
    key: bytes
    size: int
    value: bytes
    page: int


@dataclass(frozen=True, slots=True)
class Meta:
    """Where the trees begin: that of free pages, and the main one; and the number of the transaction."""

    free_root: int
    main_root: int
    transaction: int


@dataclass(slots=True)
class DatabaseFile:
    """A data file that is open. Close it.

    Args:
        path: of the file.
        seen: a byte for each page: whether a tree has it.
        free: a byte for each page: whether it is in the list of free pages.
        bad: numbers of pages that should have been in a tree, and cannot be read as that.
    """

    path: Path
    page_size: int = _USUAL_PAGE
    pages: int = 0
    seen: bytearray = field(default_factory=bytearray)
    free: bytearray = field(default_factory=bytearray)
    bad: set[int] = field(default_factory=set)
    metas: list[Meta] = field(default_factory=list)
    _fd: int = -1

    def __enter__(self) -> DatabaseFile:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        found = [self._meta(number) for number in (0, 1)]
        self.metas = sorted(filter(None, found), key=lambda meta: -meta.transaction)
        self.pages = os.fstat(self._fd).st_size // self.page_size
        self.seen, self.free = bytearray(self.pages + 1), bytearray(self.pages + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer, or none, where it ends or cannot be read."""
        try:
            return os.pread(self._fd, size, offset)
        except OSError:
            return b""

    def _meta(self, number: int) -> Meta | None:
        raw = self.read(number * self.page_size + 16, 2 * _DB.size + _META.size + _TAIL.size)
        if len(raw) < 2 * _DB.size + _META.size + _TAIL.size:
            return None
        magic, version, _, _ = _META.unpack_from(raw)
        if (magic, version) != (_MAGIC, _VERSION):
            return None
        free, main = _DB.unpack_from(raw, _META.size), _DB.unpack_from(raw, _META.size + _DB.size)
        _, transaction = _TAIL.unpack_from(raw, _META.size + 2 * _DB.size)
        if number == 0 and free[0] in (4096, 8192, 16384, 32768, 65536):
            self.page_size = free[0]
        return Meta(free[7], main[7], transaction)

    # -- pages -----------------------------------------------------------------------------------------------

    def nodes(self, number: int) -> list[Node] | None:
        """The nodes of a leaf; None if the page is none. A node that does not lie within it is left out."""
        page = self.read(number * self.page_size, self.page_size)
        places = _places(page, number, LEAF)
        if places is None:
            return None
        return self._nodes(page, places)

    def nodes_anyhow(self, number: int) -> list[Node]:
        """What would be the nodes of a page, were it a leaf, whatever its head says. Only a checksum makes them so."""
        page = self.read(number * self.page_size, self.page_size)
        places: list[int] = []
        for (place,) in struct.iter_unpack("<H", page[16 : len(page) // 2 * 2]):
            if not 16 + 2 * len(places) < place <= len(page) - _NODE.size:
                break
            places.append(place)
        return self._nodes(page, places)

    def _nodes(self, page: bytes, places: list[int]) -> list[Node]:
        found: list[Node] = []
        for place in places:
            low, high, flags, key_size = _NODE.unpack_from(page, place)
            size, start = low | high << 16, place + _NODE.size + key_size
            end = start + (_U64.size if flags & BIG else size)
            if end > len(page) or not key_size or size > _LARGEST:
                continue
            key = page[place + _NODE.size : start]
            below = _U64.unpack_from(page, start)[0] if flags & BIG else 0
            found.append(Node(flags, key, size, b"" if flags & BIG else page[start:end], below))
        return found

    def value(self, node: Node) -> bytes:
        """The value of a node, wherever it lies; shorter where it cannot be read."""
        if not node.flags & BIG:
            return node.value
        if node.page >= self.pages:
            return b""
        return self.read(node.page * self.page_size + 16, node.size)

    def mark_value(self, node: Node) -> None:
        """Note that the pages of a node's value belong to it."""
        if node.flags & BIG:
            count = -(-(node.size + 16) // self.page_size)
            for number in range(node.page, min(node.page + count, self.pages)):
                self.seen[number] = 1

    def leaves(self, root: int) -> Iterator[list[Node]]:
        """The nodes of all leaves below a page, in order; pages that cannot be read are noted as bad."""
        stack = [(root, 0)] if root != _NONE else []
        while stack:
            number, depth = stack.pop()
            if not 2 <= number < self.pages or self.seen[number] or depth > _DEEPEST:
                self.bad.add(number)
                continue
            self.seen[number] = 1
            nodes = self.nodes(number)
            if nodes is not None:
                yield nodes
                continue
            below = self._below(number)
            if below is None:
                self.seen[number] = 0
                self.bad.add(number)
                continue
            stack += [(child, depth + 1) for child in reversed(below)]

    def _below(self, number: int) -> list[int] | None:
        page = self.read(number * self.page_size, self.page_size)
        places = _places(page, number, BRANCH)
        if places is None:
            return None
        heads = (_NODE.unpack_from(page, place) for place in places)
        return [low | high << 16 | flags << 32 for low, high, flags, _ in heads]

    def mark_free(self, root: int) -> None:
        """Note the pages that are not in use, by the tree of free pages."""
        for nodes in self.leaves(root):
            for node in nodes:
                raw = self.value(node)
                self.mark_value(node)
                count = _U64.unpack_from(raw)[0] if len(raw) >= _U64.size else 0
                numbers = raw[_U64.size : _U64.size * (1 + min(count, len(raw) // _U64.size))]
                for (number,) in _U64.iter_unpack(numbers[: len(numbers) // _U64.size * _U64.size]):
                    if number < self.pages:
                        self.free[number] = 1

    def subtrees(self, root: int) -> dict[str, int]:
        """The named tables, by their roots."""
        found: dict[str, int] = {}
        for nodes in self.leaves(root):
            for node in nodes:
                if node.flags & SUBTREE and len(node.value) == _DB.size:
                    found[node.key.decode(errors="replace")] = _DB.unpack(node.value)[7]
        return found


def _places(page: bytes, number: int, kind: int) -> list[int] | None:
    """The places of the nodes of a page of some kind; None if it is not one. Places that are nonsense are left out."""
    if len(page) < 64:
        return None
    own, _, flags, lower, upper = _PAGE.unpack_from(page)
    if own != number or flags & ~0x10 != kind or not 16 <= lower <= upper <= len(page):
        return None
    places = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16)
    return [place for place in places if lower <= place <= len(page) - _NODE.size]

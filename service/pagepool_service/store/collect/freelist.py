"""Which pages of the database are free: LMDB's own list of them, read from the file.

Reads only. LMDB (0.9, data format 1) keeps, in a tree beside those of the tables, a record for each transaction that
gave pages up: its number, and the pages. The layout is that of `mdb.c`: pages of 4096 bytes mostly, two of them heads
that are written in turn, nodes with their offsets behind the head of each page. Numbers are of this machine's byte
order.

What is read is right as long as the snapshot it is read for cannot be written over: while a read transaction of it
is open, or the writer's lock is held.
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC: Final = 0xBEEFC0DE
_FORMAT: Final = 1
_HEAD: Final = 16  # bytes of a page's head
_META = struct.Struct("=II16xI36xQ48xQQ")  # magic, format, page size; root of the list; last page, transaction
_PAGE = struct.Struct("=8x2xHHH")  # flags, where the offsets of nodes end, where the nodes begin
_NODE = struct.Struct("=HHHH")  # low and high half of a size, flags, size of the key
_U64 = struct.Struct("=Q")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG = 1  # of a node: its value is on pages of its own
_NO_PAGE: Final = (1 << 64) - 1
_DEEPEST: Final = 32


class UnknownFormatError(Exception):
    """The file is not of the format that is read here, or was written over meanwhile."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head page says: the number of its transaction, page size in bytes, and where the list of free pages is."""

    transaction: int
    page_size: int
    root: int
    last_page: int


class FreeList:
    """The list as it was after one transaction.

    Args:
        descriptor: of the database file.
        transaction: its number.

    Raises:
        UnknownFormatError: neither head is of that transaction, or the file is of another format.
    """

    def __init__(self, descriptor: int, transaction: int) -> None:
        self._fd = descriptor
        heads = read_heads(descriptor)
        found = next((head for head in heads if head.transaction == transaction), None)
        if found is None:
            raise UnknownFormatError(f"no head is of transaction {transaction}")
        self.head = found

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(transaction that gave them up, their numbers as they are stored, the greatest first), oldest first."""
        if self.head.root != _NO_PAGE:
            yield from self._walk(self.head.root, _DEEPEST)

    def find(self, transaction: int) -> bytes | None:
        """The record of a transaction, or None."""
        number = self.head.root
        for _ in range(_DEEPEST):
            if number == _NO_PAGE:
                return None
            page, flags, count = self._page(number)
            if flags & _LEAF:
                for place in range(count):
                    if self._key(page, place) == transaction:
                        return self._value(page, place)
                return None
            # The first key of a branch says nothing.
            below = [place for place in range(1, count) if self._key(page, place) <= transaction]
            number = self._child(page, below[-1] if below else 0)
        raise UnknownFormatError("the list of free pages is too deep")

    def _walk(self, number: int, left: int) -> Iterator[tuple[int, bytes]]:
        if not left:
            raise UnknownFormatError("the list of free pages is too deep")
        page, flags, count = self._page(number)
        for place in range(count):
            if flags & _LEAF:
                yield self._key(page, place), self._value(page, place)
            else:
                yield from self._walk(self._child(page, place), left - 1)

    def _page(self, number: int) -> tuple[bytes, int, int]:
        """A page, its flags, and how many nodes it has."""
        page = self._read(number, 1)
        flags, lower, upper = _PAGE.unpack_from(page)
        if not flags & (_BRANCH | _LEAF) or not _HEAD <= lower <= upper <= len(page):
            raise UnknownFormatError(f"page {number} is none of a tree")
        return page, flags, (lower - _HEAD) >> 1

    def _read(self, number: int, count: int) -> bytes:
        size = self.head.page_size
        if not 2 <= number <= self.head.last_page:
            raise UnknownFormatError(f"there is no page {number}")
        data = os.pread(self._fd, count * size, number * size)
        if len(data) < count * size or _U64.unpack_from(data)[0] != number:
            raise UnknownFormatError(f"page {number} is another")
        return data

    def _node(self, page: bytes, place: int) -> tuple[int, int, int, int, int]:
        offset = int.from_bytes(page[_HEAD + 2 * place : _HEAD + 2 * place + 2], _ORDER)
        if not _HEAD <= offset <= len(page) - _NODE.size:
            raise UnknownFormatError("a node is not in its page")
        return offset, *_NODE.unpack_from(page, offset)

    def _key(self, page: bytes, place: int) -> int:
        offset, _, _, _, size = self._node(page, place)
        if size != _U64.size:
            return 0  # the first one of a branch may be empty
        return int(_U64.unpack_from(page, offset + _NODE.size)[0])

    def _child(self, page: bytes, place: int) -> int:
        _, low, high, flags, _ = self._node(page, place)
        return low | high << 16 | flags << 32

    def _value(self, page: bytes, place: int) -> bytes:
        """The page numbers of a leaf's node, without their count."""
        offset, low, high, flags, key_size = self._node(page, place)
        size, start = low | high << 16, offset + _NODE.size + key_size
        if flags & _BIG:
            first = _U64.unpack_from(page, start)[0]
            count = -(-(size + _HEAD) // self.head.page_size)
            data = self._read(first, count)[_HEAD : _HEAD + size]
        else:
            data = page[start : start + size]
        if len(data) < _U64.size or len(data) < _U64.size * (1 + _U64.unpack_from(data)[0]):
            raise UnknownFormatError("a record of free pages is cut short")
        return data[_U64.size : _U64.size * (1 + _U64.unpack_from(data)[0])]


_ORDER: Final = "little" if struct.pack("=H", 1)[0] else "big"


def read_heads(descriptor: int) -> list[Head]:
    """Both head pages.

    Raises:
        UnknownFormatError: the file is of another format.
    """
    size = _META.unpack_from(_pread(descriptor, 0))[2]
    heads: list[Head] = []
    for place in (0, size):
        magic, version, page_size, root, last_page, transaction = _META.unpack_from(_pread(descriptor, place))
        if (magic, version) != (_MAGIC, _FORMAT) or page_size != size or struct.calcsize("P") != _U64.size:
            raise UnknownFormatError(f"the database is of format {version}, which is not known here")
        heads.append(Head(transaction, page_size, root, last_page))
    return heads


def _pread(descriptor: int, place: int) -> bytes:
    data = os.pread(descriptor, _META.size, place + _HEAD)
    if len(data) < _META.size:
        raise UnknownFormatError("the database has no head")
    return data


def runs_of(record: bytes) -> list[tuple[int, int]]:
    """The pages of a record as runs (first, how many), lowest first."""
    pages = array("Q")
    pages.frombytes(record)
    runs: list[tuple[int, int]] = []
    first = count = 0
    for page in reversed(pages):
        if page == first + count and count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = page, 1
    if count:
        runs.append((first, count))
    return runs

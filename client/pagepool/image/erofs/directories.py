"""Directories of an EROFS image: blocks of records and names, both in the order of the names. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.image.erofs.format import BLOCK, DIRENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    Entry = tuple[bytes, int]


def split_blocks(entries: Sequence[Entry]) -> tuple[list[int], int]:
    """Which entries go into which block.

    Args:
        entries: of one directory, in order, with ``.`` and ``..``.

    Returns:
        where each block's entries end; and how many bytes of the last block are used.
    """
    ends: list[int] = []
    used = 0
    for place, (name, _) in enumerate(entries):
        size = DIRENT.size + len(name)
        if used + size > BLOCK:
            ends.append(place)
            used = 0
        used += size
    ends.append(len(entries))
    return ends, used


def encode_block(entries: Sequence[Entry], inodes: Sequence[int], types: bytes | bytearray) -> bytes:
    """A block of a directory, as long as what is in it.

    Args:
        entries: those of the block: name, number of the node.
        inodes: numbers of inodes, by number of the node.
        types: file types, by number of the node.
    """
    at = len(entries) * DIRENT.size
    records: list[bytes] = []
    for name, number in entries:
        records.append(DIRENT.pack(inodes[number], at, types[number]))
        at += len(name)
    return b"".join((*records, *[name for name, _ in entries]))

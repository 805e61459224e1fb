"""Segments: the files that a backup keeps records in, each some consecutive records of one table.

A segment is named by what it holds: BLAKE3 over its table and, for each record, key, length and checksum. All of that
is known without reading the records themselves, so a backup that is taken again finds the segments that it has already
without reading what is in them. Where a segment ends depends on its keys alone, so that a record more or less changes
the segment that it is in, and no other.

Byte by byte in docs/format/backup.md. Pure: no files here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool_service.store.environment import CHECKSUM_SIZE, Table, checksum

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pagepool_service.store.environment import Reader

MAGIC = b"PPSEGM01"
HEAD = struct.Struct(">8sBxxxI")
RECORD = struct.Struct(">HI")
DIGEST_SIZE = 32
_LARGEST = 16 << 20  # bytes of values after which a segment ends at the latest
# One key in so many ends a segment: frames have 256 KiB, chunks of recipes some tens, the others little.
_MEAN = {Table.FRAMES: 32, Table.RECIPES: 128}
_MEAN_OTHERS = 2048

KEPT: tuple[Table, ...] = tuple(table for table in Table if table is not Table.EXTENTS)
"""The tables that a backup holds. The index of extents is made again out of the frames."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as a segment's name sees it: its key, bytes of its value, and the checksum that ends it."""

    key: bytes
    size: int
    sum: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A record out of a segment: its key, and its value with its checksum, which was compared."""

    key: bytes
    value: memoryview

    @property
    def payload(self) -> memoryview:
        """The value without its checksum."""
        return self.value[:-CHECKSUM_SIZE]


def name_segment(table: Table, entries: Iterable[Entry]) -> str:
    """The name of the segment that holds these records: 64 hex digits."""
    hasher = blake3(MAGIC + table.code)
    for entry in entries:
        hasher.update(RECORD.pack(len(entry.key), entry.size) + entry.key + entry.sum)
    return hasher.hexdigest()


def file_size(entries: Iterable[Entry]) -> int:
    """Bytes of the segment's file."""
    return HEAD.size + sum(RECORD.size + len(entry.key) + entry.size for entry in entries) + DIGEST_SIZE


def cut_segment(txn: Reader, table: Table, start: bytes, without: frozenset[bytes]) -> tuple[list[Entry], bytes | None]:
    """The records of the next segment, and where the one behind it begins; None at the table's end.

    Args:
        start: the least key of it.
        without: keys of records that are left out, because they are damaged.
    """
    mean = _MEAN.get(table, _MEAN_OTHERS)
    entries: list[Entry] = []
    size = 0
    for key, value in txn.scan(table, start=start, check=False):
        if key in without:
            continue
        entries.append(Entry(key, len(value), bytes(value[-CHECKSUM_SIZE:])))
        size += len(value)
        if zlib.crc32(key) % mean == 0 or size >= _LARGEST:
            return entries, key + b"\0"
    return entries, None


def encode_segment(txn: Reader, table: Table, entries: Sequence[Entry]) -> Iterator[bytes]:
    """The bytes of a segment's file, record by record, each compared with its checksum.

    Raises:
        CorruptError: a record is damaged: of the kind ``record``, its key in hex as its name.
        LookupError: a record is not as it was when the segment was cut.
    """
    hasher = blake3()

    def hashed(piece: bytes) -> bytes:
        hasher.update(piece)
        return piece

    yield hashed(HEAD.pack(MAGIC, table.code[0], len(entries)))
    for entry in entries:
        value = txn.get_unchecked(table, entry.key)
        if value is None or len(value) != entry.size or value[-CHECKSUM_SIZE:] != entry.sum:
            raise LookupError(entry.key)
        if len(value) < CHECKSUM_SIZE or checksum(table, entry.key, value[:-CHECKSUM_SIZE]) != entry.sum:
            raise CorruptError("record", entry.key.hex(), "its checksum does not match its bytes")
        yield hashed(RECORD.pack(len(entry.key), entry.size) + entry.key + bytes(value))
    yield hasher.digest()


def decode_segment(raw: bytes, name: str) -> tuple[Table, list[Record]]:
    """Take a segment's file apart. Everything in it is compared: the digest at its end, its name, all checksums.

    Raises:
        CorruptError: it is not what its name says.
    """
    if len(raw) < HEAD.size + DIGEST_SIZE or blake3(raw[:-DIGEST_SIZE]).digest() != raw[-DIGEST_SIZE:]:
        raise CorruptError("segment", name, f"the digest at its end does not match its {len(raw)} bytes")
    magic, code, count = HEAD.unpack_from(raw)
    table = _TABLES.get(code)
    if magic != MAGIC or table is None:
        raise CorruptError("segment", name, "its head is none of a segment")
    records: list[Record] = []
    view = memoryview(raw)[:-DIGEST_SIZE]
    at = HEAD.size
    try:
        for _ in range(count):
            key_size, size = RECORD.unpack_from(view, at)
            at += RECORD.size + key_size + size
            records.append(Record(bytes(view[at - size - key_size : at - size]), view[at - size : at]))
    except struct.error as error:
        raise CorruptError("segment", name, f"it ends within a record: {error}") from error
    for record in records:
        if checksum(table, record.key, record.payload) != record.value[-CHECKSUM_SIZE:]:
            raise CorruptError("segment", name, f"the checksum of record {record.key.hex()} does not match its bytes")
    entries = (Entry(record.key, len(record.value), bytes(record.value[-CHECKSUM_SIZE:])) for record in records)
    if at != len(view) or name_segment(table, entries) != name:
        raise CorruptError("segment", name, "it holds other records than its name says")
    return table, records


_TABLES = {table.code[0]: table for table in Table}

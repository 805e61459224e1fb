"""Which span pushed a blob: a page of memory that workers write, and the processes that read layers look into.

Made by the supervisor before the fork. A place for each of a few thousand blobs, by their digests; the later one
overwrites. An entry has a checksum: what two processes wrote at once is no entry. Losing one costs a link in a trace.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from typing import NamedTuple

_ENTRY = struct.Struct("<16s16s8sBxxxI")
_PLACES = 4096


class SpanName(NamedTuple):
    """A span of some trace: the 16 bytes of the trace's id, the 8 of its own, and its flags."""

    trace: bytes
    span: bytes
    flags: int


class PushNotes:
    """The notes. Nothing blocks."""

    def __init__(self) -> None:
        self._entries = mmap.mmap(-1, _PLACES * _ENTRY.size)

    def put(self, blob: str, span: SpanName) -> None:
        """Note who pushed a blob.

        Args:
            blob: its digest.
        """
        name = _name(blob)
        entry = _ENTRY.pack(name, *span, 0)
        entry = _ENTRY.pack(name, *span, zlib.crc32(entry[:-4]))
        start = _start(name)
        self._entries[start : start + _ENTRY.size] = entry

    def find(self, blob: str) -> SpanName | None:
        """Who pushed a blob last, if that is still known."""
        name = _name(blob)
        start = _start(name)
        entry = self._entries[start : start + _ENTRY.size]
        found, trace, span, flags, checksum = _ENTRY.unpack(entry)
        if found != name or checksum != zlib.crc32(entry[:-4]):
            return None
        return SpanName(trace, span, flags)


def _name(blob: str) -> bytes:
    return hashlib.sha256(blob.encode()).digest()[:16]


def _start(name: bytes) -> int:
    return int.from_bytes(name[:4], "little") % _PLACES * _ENTRY.size

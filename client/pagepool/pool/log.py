"""What happened to a pool's objects since the eviction queue was last brought up to date: records of 48 bytes.

Every process appends under the ledger's lock; whoever evicts reads all of it and empties it. It is also the recorded
trace of a pool. What a crash tears or loses is harmless: an unknown object is found by walking the pool, a lost access
makes an object look a little colder.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pagepool.pool.layout import LOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ACCESS: Final = 0
OBJECT: Final = 1
PARTIAL: Final = 2
GONE: Final = 3
RECORD: Final = struct.Struct("<B7xQ32s")
"""What happened; bytes, of OBJECT and PARTIAL; the digest of an object or the key of a partial."""
MOST_ACCESSES: Final = 4 << 20
"""Bytes of log after which accesses are not written down any more."""


class Log:
    """The file, open for appending. All methods are called with the ledger's lock held."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path / LOG, flags, 0o600)

    def append(self, what: int, name: bytes, size: int = 0) -> None:
        """Write one record down."""
        self._write(RECORD.pack(what, size, name))

    def append_accesses(self, names: Iterable[bytes]) -> None:
        """Write accesses down, unless nobody has read the log for long."""
        if self.size < MOST_ACCESSES:
            self._write(b"".join(RECORD.pack(ACCESS, 0, name) for name in names))

    @property
    def size(self) -> int:
        """Bytes in it."""
        return os.fstat(self._descriptor).st_size

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """All records, oldest first: what happened, bytes, name."""
        raw = os.pread(self._descriptor, self.size, 0)
        yield from RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size])

    def _write(self, records: bytes) -> None:
        # On a disk that is full, or takes no writes any more, records are lost, whole ones: what is here can be read.
        with suppress(OSError):
            if os.write(self._descriptor, records) < len(records):
                os.ftruncate(self._descriptor, self.size // RECORD.size * RECORD.size)

    def clear(self) -> None:
        """Empty it; where that cannot be, what is in it is read once more."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
        self._descriptor = -1

"""Read blobs and records out of a snapshot where it lies, without restoring it.

A `SnapshotRecords` looks like the store's environment to those parts of the store that read a blob: they ask it for
records by key, and it has these from the segments. So a blob comes out of a backup as it would out of the store,
with everything compared on the way, however it was stored. For one thread; the last segments are kept in memory.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from pagepool.errors import CorruptError
from pagepool.extents import FrameHead
from pagepool_service.backup.segments import decode_segment
from pagepool_service.store.blobs import BlobStore
from pagepool_service.store.environment import Table
from pagepool_service.store.extents import ExtentStore
from pagepool_service.store.schema import Location

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.backup.repository import Repository, SegmentEntry, Snapshot
    from pagepool_service.store.environment import Environment, Reader
    from pagepool_service.store.jobs import JobQueue

log = logging.getLogger("pagepool.backup")

_SEGMENTS: Final = 4
"""Decoded segments in memory. Each has up to about 16 MiB; reading a layer goes back and forth between tables."""

Records = tuple[list[bytes], list[memoryview]]  # keys in order, and the payload of each


class SnapshotRecords:
    """The records of a snapshot by their keys, in the words of `Environment` and `Reader`.

    A segment that cannot be read counts as one without records, and is named in the log.

    Args:
        repository: has the snapshot.
    """

    def __init__(self, repository: Repository, snapshot: Snapshot) -> None:
        self._repository = repository
        self._tables = {table: snapshot.tables.get(table.label, []) for table in Table}
        self._firsts = {table: [bytes.fromhex(one.first) for one in found] for table, found in self._tables.items()}
        self._decoded: OrderedDict[str, Records] = OrderedDict()
        self._places: dict[bytes, bytes] | None = None

    @contextmanager
    def read(self) -> Iterator[SnapshotRecords]:
        """A snapshot stays as it is: there is nothing to begin."""
        yield self

    def get(self, table: Table, key: bytes) -> memoryview | None:
        """The payload under a key, or None."""
        if table is Table.EXTENTS:  # no backup has it
            if self._places is None:
                self._places = dict(self._index())
            place = self._places.get(key)
            return None if place is None else memoryview(place)
        found = self.last(table, key, key)
        return found[1] if found is not None and found[0] == key else None

    def last(self, table: Table, prefix: bytes, at_most: bytes) -> tuple[bytes, memoryview] | None:
        """The record with the greatest key that begins with `prefix` and is <= `at_most`, or None."""
        number = bisect_right(self._firsts[table], at_most) - 1
        if number < 0:
            return None
        keys, payloads = self._records(self._tables[table][number])
        at = bisect_right(keys, at_most) - 1
        return (keys[at], payloads[at]) if at >= 0 and keys[at].startswith(prefix) else None

    def _records(self, entry: SegmentEntry) -> Records:
        found = self._decoded.pop(entry.name, None)
        if found is None:
            try:
                _, records = decode_segment(self._repository.segment_path(entry.name).read_bytes(), entry.name)
            except (OSError, CorruptError) as error:
                log.warning("%s: %s", self._repository.path, error)
                records = []
            found = [record.key for record in records], [record.payload for record in records]
        self._decoded[entry.name] = found
        while len(self._decoded) > _SEGMENTS:
            self._decoded.popitem(last=False)
        return found

    def _index(self) -> Iterator[tuple[bytes, bytes]]:
        """Where each extent lies, as the index says it. Reads all of the frames, once."""
        for entry in self._tables[Table.FRAMES]:
            for key, payload in zip(*self._records(entry), strict=True):
                head, _ = FrameHead.decode(payload, key.hex())
                offset = 0
                for digest, size in head.extents:
                    yield digest, Location(int.from_bytes(key, "big"), offset, size).encode()
                    offset += size


class SnapshotBlobs:
    """The blobs and extents of a snapshot.

    Args:
        repository: has the snapshot.
    """

    def __init__(self, repository: Repository, snapshot: Snapshot) -> None:
        self.records = SnapshotRecords(repository, snapshot)
        self._extents = ExtentStore()
        nothing = cast("JobQueue", None)  # for writing only
        environment = cast("Environment", self.records)
        self.blobs = BlobStore(environment, self._extents, nothing, repository.path / "spool")

    def extent(self, digest: bytes) -> bytes | None:
        """The bytes of an extent, or None if the snapshot has it not, or only damaged."""
        try:
            return bytes(self._extents.extent(cast("Reader", self.records), digest))
        except CorruptError:
            return None

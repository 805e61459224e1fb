"""Transactions of the store: records by table and key, each with a checksum at its end.

Owns the named tables, and the rule that every record ends in a checksum of its table, key and payload, which is checked
on each read. Does not own what the payloads mean (`schema`), nor how a transaction begins and ends (`environment`).

A transaction belongs to the thread that began it, and values are views that die with it.

Format: docs/format/store.md.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lmdb

CHECKSUM_SIZE = 8
MAPPED_AROUND = 64 << 10
"""Bytes: the kernel maps so much around a page that is looked at."""


class Table(Enum):
    """The named databases. The value is (code in checksums, name)."""

    META = (1, "meta")
    EXTENTS = (2, "extents")
    FRAMES = (3, "frames")
    OBJECTS = (4, "objects")
    RECIPES = (5, "recipes")
    LAYERS = (6, "layers")
    BLOBS = (7, "blobs")
    LINKS = (8, "links")
    MANIFESTS = (9, "manifests")
    MANIFEST_LINKS = (10, "manifest_links")
    TAGS = (11, "tags")
    REFERRERS = (12, "referrers")
    JOBS = (13, "jobs")
    TREES = (14, "trees")
    LEASES = (15, "leases")
    CORRECTIONS = (16, "corrections")

    def __init__(self, code: int, label: str) -> None:
        self.code = bytes((code,))
        self.label = label


def checksum(table: Table, key: bytes, payload: bytes | memoryview) -> bytes:
    """The check of one record: 8 bytes of BLAKE3 over table code, key and payload."""
    return blake3(table.code + key).update(payload).digest(CHECKSUM_SIZE)


class Reader:
    """A read transaction: one consistent snapshot. Values are views that die with the transaction."""

    __slots__ = ("_tables", "_txn", "_used")

    def __init__(self, txn: lmdb.Transaction[memoryview], tables: dict[Table, lmdb._Database]) -> None:
        self._txn = txn
        self._tables = tables
        self._used = 0

    @property
    def mapped(self) -> int:
        """About how many bytes were mapped by what was looked at so far, at most."""
        return self._used

    @property
    def version(self) -> int:
        """The number of the last committed transaction that this snapshot has."""
        return self._txn.id()

    def get(self, table: Table, key: bytes) -> memoryview | None:
        """The payload under `key`, checked, or None.

        Raises:
            CorruptError: the record is there and its checksum is wrong.
        """
        self._used += MAPPED_AROUND
        value = self._txn.get(key, db=self._tables[table])
        return None if value is None else self._checked(table, key, value)

    def get_unchecked(self, table: Table, key: bytes) -> memoryview | None:
        """The value under `key` as it lies there, checksum and all: for what repairs damage."""
        self._used += MAPPED_AROUND
        return self._txn.get(key, db=self._tables[table])

    def has(self, table: Table, key: bytes) -> bool:
        """Whether a record is there, without reading it."""
        self._used += MAPPED_AROUND
        return self._txn.get(key, db=self._tables[table]) is not None

    def get_many_unchecked(self, table: Table, keys: Sequence[bytes]) -> list[memoryview]:
        """The values of those of many keys that have a record, as they lie there: see `get_unchecked`."""
        self._used += MAPPED_AROUND * len(keys)
        with self._txn.cursor(self._tables[table]) as cursor:
            return [value for _, value in cursor.getmulti(keys)]

    def present(self, table: Table, keys: Sequence[bytes]) -> set[bytes]:
        """Which of many keys have a record. One call gives the GIL up once, not once a key."""
        self._used += MAPPED_AROUND * len(keys)
        with self._txn.cursor(self._tables[table]) as cursor:
            return {bytes(key) for key, _ in cursor.getmulti(keys)}

    def scan(
        self, table: Table, prefix: bytes = b"", *, start: bytes | None = None, check: bool = True
    ) -> Iterator[tuple[bytes, memoryview]]:
        """Records whose key begins with `prefix`, in key order, from `start` (inclusive) on.

        Raises:
            CorruptError: at the first record whose checksum is wrong (not with check=False, which leaves
                the checksum on the value: fsck goes on behind a damaged record).
        """
        with self._txn.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(start if start is not None else prefix)
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                value = cursor.value()
                yield key, self._checked(table, key, value) if check else value
                found = cursor.next()

    def scan_all(
        self, table: Table, prefix: bytes = b"", *, start: bytes | None = None
    ) -> Iterator[tuple[bytes, memoryview | CorruptError]]:
        """As `scan`, behind damaged records too: for listings. Of such a record, what is wrong with it.

        Its key may be what is damaged: then it is not in its place, and does not end the records of the prefix either.
        None is before `start`, all the same: who goes on from where he was gets on.
        """
        begun = prefix if start is None else start
        for key, payload in self._around(table, begun):
            if key < begun:
                pass
            elif key.startswith(prefix):
                yield key, payload
            elif not isinstance(payload, CorruptError):
                return

    def scan_surely(
        self, table: Table, prefix: bytes = b"", *, start: bytes | None = None
    ) -> Iterator[tuple[bytes, memoryview]]:
        """As `scan`, for who must not miss any: what seems to be none of them may be one whose key is damaged.

        Raises:
            CorruptError: at the first record among them, or beside them, whose checksum is wrong.
        """
        begun = prefix if start is None else start
        for key, payload in self._around(table, begun):
            if isinstance(payload, CorruptError):
                raise payload
            if key >= begun:
                if not key.startswith(prefix):
                    return
                yield key, payload

    def _around(self, table: Table, begun: bytes) -> Iterator[tuple[bytes, memoryview | CorruptError]]:
        """All records from `begun` on, and one before it, with those between that are damaged.

        A search that comes by a damaged key may be led behind others: so it is from the last sound record before
        `begun` that one goes on, wherever that search has ended.
        """
        with self._txn.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(begun) or cursor.last()
            while found:
                key, payload = self._looked_at(table, cursor)
                if key < begun and not isinstance(payload, CorruptError):
                    break
                found = cursor.prev()
            found = found or cursor.first()
            while found:
                yield self._looked_at(table, cursor)
                found = cursor.next()

    def _looked_at(self, table: Table, cursor: lmdb.Cursor[memoryview]) -> tuple[bytes, memoryview | CorruptError]:
        key = bytes(cursor.key())
        try:
            return key, self._checked(table, key, cursor.value())
        except CorruptError as error:
            return key, error

    def last(self, table: Table, prefix: bytes, at_most: bytes) -> tuple[bytes, memoryview] | None:
        """The record with the greatest key that begins with `prefix` and is <= `at_most`, or None."""
        with self._txn.cursor(self._tables[table]) as cursor:
            if cursor.set_range(at_most):
                if bytes(cursor.key()) != at_most and not cursor.prev():
                    return None
            elif not cursor.last():
                return None
            key = bytes(cursor.key())
            return (key, self._checked(table, key, cursor.value())) if key.startswith(prefix) else None

    def count(self, table: Table) -> int:
        """Number of records in a table."""
        return self._txn.stat(self._tables[table])["entries"]

    def table_bytes(self, table: Table) -> int:
        """Bytes of database pages that a table takes."""
        stat = self._txn.stat(self._tables[table])
        return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def used_bytes(self) -> int:
        """Bytes of database pages in use by all tables: the file without its free pages."""
        return sum(map(self.table_bytes, Table))

    def _checked(self, table: Table, key: bytes, value: memoryview) -> memoryview:
        self._used += len(value)
        payload = value[:-CHECKSUM_SIZE]
        if len(value) < CHECKSUM_SIZE or checksum(table, key, payload) != value[-CHECKSUM_SIZE:]:
            raise CorruptError(f"{table.label} record", key.hex(), "its checksum does not match its bytes")
        return payload


class Writer(Reader):
    """The write transaction: sees its own writes. Everything in it becomes visible and durable at once."""

    __slots__ = ()

    def put(self, table: Table, key: bytes, payload: bytes) -> None:
        """Store a record, replacing one under the same key."""
        self._used += MAPPED_AROUND
        self._txn.put(key, payload + checksum(table, key, payload), db=self._tables[table])

    def append(self, table: Table, key: bytes, payload: bytes) -> bool:
        """Store a record whose key is greater than every other. Returns False, and stores nothing, if it is not."""
        return self._txn.put(key, payload + checksum(table, key, payload), db=self._tables[table], append=True)

    def put_as_is(self, table: Table, key: bytes, value: bytes) -> None:
        """Store a value with the checksum that it has, right or wrong: for what saves records from damaged pages."""
        self._txn.put(key, value, db=self._tables[table])

    def put_new(self, table: Table, key: bytes, payload: bytes) -> bool:
        """Store a record unless one is there. Returns whether it was stored."""
        value = payload + checksum(table, key, payload)
        return self._txn.put(key, value, db=self._tables[table], overwrite=False)

    def delete(self, table: Table, key: bytes) -> bool:
        """Remove a record. Returns whether there was one."""
        return self._txn.delete(key, db=self._tables[table])

    def delete_prefix(self, table: Table, prefix: bytes) -> int:
        """Remove every record whose key begins with `prefix`. Returns how many there were."""
        removed = 0
        with self._txn.cursor(self._tables[table]) as cursor:
            found = cursor.set_range(prefix)
            # Behind the last record the cursor's key is empty.
            while found and (key := bytes(cursor.key())) and key.startswith(prefix):
                found = cursor.delete()
                removed += 1
        return removed

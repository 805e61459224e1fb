"""The LMDB environment: opening, transactions, record checksums, quota, and errors in our own words.

Owns: one environment with the named tables of `Table`, and the rule that every record ends in a checksum of
its table, key and payload, which is checked on each read. Does not own what the payloads mean (`schema`).

Concurrency: any number of threads and processes read without blocking; writers take LMDB's one writer lock
for the length of a transaction, so writers prepare everything (compression, hashing) before they begin. A
transaction belongs to the thread that began it. Never keep a read transaction across a network wait: it pins
every page freed since it began.

Crash: a transaction is visible and durable as a whole once `write()` has left its block without an exception,
and not at all otherwise (LMDB's own guarantee, with its default of two synchronous meta pages).

Format: docs/format/store.md.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING

import lmdb
from blake3 import blake3

from pagepool.errors import (
    BusyError,
    CorruptError,
    PagepoolError,
    ReadOnlyError,
    StoreFormatError,
    StoreFullError,
    UnsupportedError,
)
from pagepool.linux import stay_in_place
from pagepool_service.store.disk import refused_database
from pagepool_service.store.mapping import MappedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

FORMAT_VERSION = 1
MAP_SIZE = 16 << 40  # address space only; the file starts at a few kilobytes
_NO_MORE = tuple(map(os.strerror, (errno.EMFILE, errno.ENFILE)))
MAX_READERS = 4096
CHECKSUM_SIZE = 8
# With more bytes of files mapped, the database's pages are dropped from our page tables: the page cache keeps them.
# About 12 MiB are the program's own.
_MAPPED_MOST = 40 << 20
_COUNTED_BETWEEN = 1 << 20  # bytes that were read, or were mapped beside what was read, between two looks at it
_MAPPED_AROUND = 64 << 10  # the kernel maps so much around a page that is looked at


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
        self._used += _MAPPED_AROUND
        value = self._txn.get(key, db=self._tables[table])
        return None if value is None else self._checked(table, key, value)

    def get_unchecked(self, table: Table, key: bytes) -> memoryview | None:
        """The value under `key` as it lies there, checksum and all: for what repairs damage."""
        self._used += _MAPPED_AROUND
        return self._txn.get(key, db=self._tables[table])

    def has(self, table: Table, key: bytes) -> bool:
        """Whether a record is there, without reading it."""
        self._used += _MAPPED_AROUND
        return self._txn.get(key, db=self._tables[table]) is not None

    def get_many_unchecked(self, table: Table, keys: Sequence[bytes]) -> list[memoryview]:
        """The values of those of many keys that have a record, as they lie there: see `get_unchecked`."""
        self._used += _MAPPED_AROUND * len(keys)
        with self._txn.cursor(self._tables[table]) as cursor:
            return [value for _, value in cursor.getmulti(keys)]

    def present(self, table: Table, keys: Sequence[bytes]) -> set[bytes]:
        """Which of many keys have a record. One call gives the GIL up once, not once a key."""
        self._used += _MAPPED_AROUND * len(keys)
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
        self._used += _MAPPED_AROUND
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


class Environment:
    """The store's LMDB environment. Make with `open`; close when done.

    Args:
        env: the open LMDB environment.
        path: its directory.
        quota_bytes: most bytes that database pages in use, and `other_bytes`, may take after a write; 0: no limit.
        readonly: whether writes are refused.
    """

    def __init__(self, env: lmdb.Environment, path: Path, *, quota_bytes: int, readonly: bool) -> None:
        self._env = env
        self._path = path
        self._quota = quota_bytes
        self.readonly = readonly
        self.on_panic: Callable[[], None] | None = None
        self.other_bytes: Callable[[], int] | None = None  # what else counts against the quota
        self._mapped = MappedFile(path / "data.mdb")
        self._mapped_bytes = 0
        self._lock = threading.Lock()
        self._tables: dict[Table, lmdb._Database] = {}

    @classmethod
    def open(cls, path: Path, *, quota_bytes: int = 0, readonly: bool = False, shared: bool = False) -> Environment:
        """Open the environment in a directory, making it when it is not there.

        Args:
            shared: with `readonly`: others may write meanwhile. Takes part in the readers' table, which must be
                writable. Without it, it does so where it can: a command may write beside a service that does not,
                and would write over pages that this one looks at.

        Raises:
            StoreFormatError: it is of another format version, or not a store.
            ReadOnlyError: it cannot be written to, and `readonly` was not asked for.
            UnsupportedError: this process may not map it.
            BusyError: no more files may be opened.
        """
        try:
            if not readonly:
                path.mkdir(parents=True, exist_ok=True)
                _make_lock_file(path / "lock.mdb")
            locks = shared or not readonly or _can_take_part(path)
            env = lmdb.open(
                os.fsencode(path), map_size=MAP_SIZE, max_dbs=len(Table) + 4, max_readers=MAX_READERS,
                readonly=readonly, create=not readonly, lock=locks, readahead=False, meminit=False, max_spare_txns=16,
                mode=0o600,
            )  # fmt: skip
        except lmdb.MemoryError as error:
            raise UnsupportedError(
                f"{path} cannot be mapped: the database is given {MAP_SIZE >> 40} TiB of addresses (it takes no memory "
                "for them), and this process may not have so many: see ulimit -v"
            ) from error
        except (lmdb.Error, OSError) as error:
            raise _translated(error, path) from error
        self = cls(env, path, quota_bytes=quota_bytes, readonly=readonly)
        try:
            self._open_tables()
        except BaseException:
            env.close()
            raise
        return self

    def _open_tables(self) -> None:
        try:
            for table in Table:
                name = table.label.encode()
                self._tables[table] = self._env.open_db(name, create=not self.readonly)
            if not self.readonly:
                self._env.reader_check()
        except lmdb.Error as error:
            raise _translated(error, self._path) from error
        with self.read() as txn:
            stored = txn.get(Table.META, b"format")
            version = None if stored is None else int.from_bytes(stored, "big")
        if version is None and not self.readonly:
            with self.write() as txn:
                txn.put(Table.META, b"format", FORMAT_VERSION.to_bytes(4, "big"))
        elif version != FORMAT_VERSION:
            raise StoreFormatError(
                f"{self._path} has store format {version}; this pagepool reads format {FORMAT_VERSION}"
            )

    def close(self) -> None:
        """Close. Every transaction must have ended."""
        self._env.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A read transaction for the length of a block."""
        try:
            with self._env.begin(buffers=True) as txn:
                reader = Reader(txn, self._tables)
                yield reader
        except lmdb.PanicError as error:
            raise self._panicked(error) from error
        except lmdb.Error as error:
            raise _translated(error, self._path) from error
        self._count_mapped(reader.mapped)

    @contextmanager
    def write(self, *, reserve: int | Callable[[Reader], int] = 0) -> Iterator[Writer]:
        """The write transaction, for the length of a block: commits at its end, aborts on an exception.

        Args:
            reserve: about how many bytes the block will add, held against the quota before it begins; or what tells
                that, asked in the transaction where there is a quota.

        Raises:
            StoreFullError: quota or disk; nothing was written.
            ReadOnlyError: the store cannot be written to.
        """
        if self.readonly:
            raise ReadOnlyError("it was opened read-only")
        try:
            with self._env.begin(write=True, buffers=True) as txn:
                writer = Writer(txn, self._tables)
                if self._quota and (incoming := reserve(writer) if callable(reserve) else reserve):
                    self._check_quota(writer, incoming)
                yield writer
        except lmdb.PanicError as error:
            raise self._panicked(error) from error
        except lmdb.Error as error:
            raise _translated(error, self._path, writing=True) from error
        self._count_mapped(writer.mapped)

    def sync(self) -> None:
        """Have everything of the database written that is in the page cache. Blocks; holds no lock of LMDB.

        Raises:
            StoreFullError, ReadOnlyError: the disk refused it.
        """
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise _translated(error, self._path, writing=True) from error

    def check_readers(self) -> int:
        """Free the reader slots of processes that died. Returns how many there were."""
        return self._env.reader_check()

    @property
    def file(self) -> Path:
        """The database file."""
        return self._path / "data.mdb"

    def oldest_reader(self, newest: int) -> int:
        """The number of the oldest snapshot that anybody has open, in any process; `newest` if there is none older."""
        # A head, and a line for each slot in use: process, thread, transaction, or "-" if it has none open.
        text = self._env.readers()
        if text.startswith("(no reader locks"):  # opened without a table: nobody can say
            return 0
        lines = text.splitlines()[1:]
        return min([newest, *(int(line.split()[2]) for line in lines if not line.endswith("-"))])

    def version(self) -> int:
        """The number of the last transaction that was committed, by whatever process.

        For a moment it is ahead of what a snapshot that begins now has; `Reader.version` is exact.
        """
        return self._env.info()["last_txnid"]

    def file_bytes(self) -> int:
        """Size of the database file on disk, free pages included."""
        return self._path.joinpath("data.mdb").stat().st_blocks * 512

    def _panicked(self, error: lmdb.Error) -> PagepoolError:
        """After a failed write to its header LMDB refuses everything until it is opened again, by another process."""
        if self.on_panic:
            self.on_panic()
        return refused_database(self._path, f"of the database's header: {error}")

    def _check_quota(self, writer: Writer, reserve: int) -> None:
        used = writer.used_bytes() + (self.other_bytes() if self.other_bytes else 0)
        if used + reserve > self._quota:
            raise StoreFullError(f"{used} bytes used, {reserve} more needed, the quota is {self._quota}")

    def trim(self) -> None:
        """Keep the process's resident share of the map bounded. Every transaction does it at its end."""
        self._mapped.trim(_MAPPED_MOST)

    def _count_mapped(self, size: int) -> None:
        with self._lock:
            # Each transaction looks at the root, which is elsewhere after each commit: a process that only looks
            # whether there is something to do would map the whole file in time.
            self._mapped_bytes += size + _MAPPED_AROUND
            if self._mapped_bytes < _COUNTED_BETWEEN:
                return
            self._mapped_bytes = 0
        self.trim()


def _make_lock_file(path: Path) -> None:
    """Make the file that readers write to through a mapping: if that needed room, a full disk would end them (SIGBUS).

    One that is there has been asked for that, or is not empty any more.
    """
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            stay_in_place(descriptor)
        finally:
            os.close(descriptor)


def _can_take_part(path: Path) -> bool:
    """Whether a reader can have itself noted in the table of readers."""
    table = path / "lock.mdb"
    return os.access(table if table.exists() else path, os.R_OK | os.W_OK)


def _translated(error: Exception, path: Path, *, writing: bool = False) -> PagepoolError:
    """LMDB's and the system's errors in our own words."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
    if writing and number == errno.EFBIG:
        return StoreFullError(f"the disk under {path} refused a write: {text}")
    if writing and number == errno.EIO:
        return refused_database(path, text)
    if isinstance(error, lmdb.MapFullError):
        return StoreFullError(f"the database has reached its largest size of {MAP_SIZE} bytes")
    if isinstance(error, lmdb.DiskError) or number in (errno.ENOSPC, errno.EDQUOT) or "quota" in text.lower():
        return StoreFullError(f"no space left on the disk under {path}")
    if isinstance(error, lmdb.ReadonlyError) or number == errno.EROFS or "Read-only file system" in text:
        return ReadOnlyError(f"{path}: {text}")
    if isinstance(error, lmdb.MemoryError) or text.endswith(_NO_MORE):
        return BusyError(f"the store at {path} cannot be used now: {text}")
    if isinstance(error, (lmdb.ReadersFullError, lmdb.LockError)):
        return BusyError(f"the store at {path} is busy: {text}")
    if isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
        return StoreFormatError(f"{path} is not a pagepool store: {text}")
    return CorruptError("database", str(path), text)

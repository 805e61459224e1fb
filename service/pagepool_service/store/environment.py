"""The LMDB environment: opening, beginning transactions, quota, memory, and errors in our own words.

Owns: one environment with the named tables of `Table`. Does not own what is done in a transaction (`transactions`: its
names are to be had here, too), nor what the payloads mean (`schema`).

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
from typing import TYPE_CHECKING

import lmdb

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
from pagepool_service.store.transactions import CHECKSUM_SIZE, MAPPED_AROUND, Reader, Table, Writer, checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "CHECKSUM_SIZE",
    "FORMAT_VERSION",
    "MAP_SIZE",
    "MAX_READERS",
    "Environment",
    "Reader",
    "Table",
    "Writer",
    "checksum",
]

FORMAT_VERSION = 1
MAP_SIZE = 16 << 40  # address space only; the file starts at a few kilobytes
_NO_MORE = tuple(map(os.strerror, (errno.EMFILE, errno.ENFILE)))
MAX_READERS = 4096
# With more bytes of files mapped, the database's pages are dropped from our page tables: the page cache keeps them.
# About 12 MiB are the program's own.
_MAPPED_MOST = 40 << 20
_COUNTED_BETWEEN = 1 << 20  # bytes that were read, or were mapped beside what was read, between two looks at it


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
            self._mapped_bytes += size + MAPPED_AROUND
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
